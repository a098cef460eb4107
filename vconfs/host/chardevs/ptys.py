"""The pty chardev."""

from __future__ import annotations

import errno
import os
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import ClassVar, Final, Self

import trio
from attrs import define, field

from vconfs.errors import VconfsError
from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs._access import ACCESS_FORMS, file_access
from vconfs.host.chardevs._client import Client, can_reopen, pass_on, serve, serve_anew
from vconfs.overrides import override
from vconfs.protocol.events import Buffer
from vconfs.syntax.url_options import split_options
from vconfs.system.backoff import Backoff, is_passing
from vconfs.system.descriptors import owned
from vconfs.system.file_access import OUR_OWN, FileAccess
from vconfs.system.own_mounts import refuse_own
from vconfs.system.path_errors import cannot
from vconfs.system.pipes import Pipe
from vconfs.system.raw_pty import RawPty, open_pty
from vconfs.system.tasks import open_background

#: The size of a window that was not set yet.
_UNSET: Final = (0, 0)
#: Seconds between two looks at the window size, while a program has a console open.
_LOOK: Final = 0.2


@define
class Pty(Chardev):
    """A pty in raw mode; `path` is the path of its slave, and `link` an optional symlink to it.

    The guest's console gets the window size that is set on the pty (by `stty cols 132 rows 43`, or
    by the program that shows it), as long as a program has it open.
    """

    link: str = ""
    path: str = ""
    access: FileAccess = OUR_OWN
    _size: tuple[int, int] = field(init=False, default=(0, 0))  # of the window, as last seen
    options: ClassVar[Sequence[str] | None] = ACCESS_FORMS

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the path of a symlink to the slave, which may be left out."""
        link, options = split_options("pty", argument, *ACCESS_FORMS)
        if "\0" in link:
            raise ValueError(f"pty: a path cannot contain a NUL: {link!r}")
        return cls(link, access=file_access(options))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve the programs that open the slave, one session after the other.

        Programs that are hung up keep a dead pty, and the next ones get another.
        """
        tries = Backoff(f"port {port.id}", f"port {port.id}: there is a pty again")
        await serve_anew(
            tries,
            partial(self._serve_one, port),
            task_status.started,
            lambda: can_reopen(port, tries.try_now),
        )

    async def _serve_one(self, port: PortSide, ready: Callable[[], None]) -> None:
        """Open a pty and serve the programs that open its slave, until another pty is needed."""
        with _opened(self.access) as pty, _linked(self.link, pty.path):
            self.path = pty.path
            ready()
            await pty.wait_occupied()
            while await self._serve_session(port, pty) and _renew(pty):
                await pty.wait_occupied()

    async def _serve_session(self, port: PortSide, pty: RawPty) -> bool:
        client = _PtyClient(pty)
        if not port.console:
            return await serve(port, client)
        async with open_background() as nursery:
            nursery.start_soon(self._follow_size, port, pty)
            return await serve(port, client)

    async def _follow_size(self, port: PortSide, pty: RawPty) -> None:
        """Tell the guest the window size, which the kernel reports to no master of a pty."""
        while True:
            if (size := pty.size) not in (self._size, _UNSET):
                self._size = size
                port.resize(*size)
            await trio.sleep(_LOOK)


@contextmanager
def _opened(access: FileAccess) -> Iterator[RawPty]:
    with ExitStack() as stack:
        try:
            pty = stack.enter_context(open_pty())
        except OSError as error:
            raise VconfsError(f"cannot open a pty: {error.strerror}") from None
        try:
            access.apply(pty.path)
        except OSError as error:
            raise cannot(pty.path, error) from None
        yield pty


class _PtyClient(Client):
    """All programs that have the slave open, as one client."""

    def __init__(self, pty: RawPty) -> None:
        self._pty = pty
        self._master = Pipe(pty.master)

    @override
    async def receive(self) -> Buffer:
        try:
            return await self._master.receive()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""  # the last program has closed the slave

    @override
    async def take_from(self, port: PortSide) -> None:
        await self._master.writable()
        await pass_on(port, self._master.send)

    @override
    async def gone(self) -> None:
        """Return at once: a terminal is hung up at the end of its data."""

    @override
    def unread(self) -> int:
        """Return what is unread, which is lost when a terminal is closed."""
        return self._pty.unread()

    @override
    def leave(self) -> int:
        return self._pty.take_unread()


def _renew(pty: RawPty) -> bool:
    """Drop what the last programs did not read, and undo their terminal settings.

    Return False if that is not possible: the next programs need another pty.
    """
    unused = not pty.occupied  # else the next program is there, and the settings are its own
    try:
        slave = os.open(pty.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        with owned(slave):
            termios.tcflush(slave, termios.TCIFLUSH)
            if unused:
                tty.setraw(slave, termios.TCSANOW)
    except OSError as error:  # TIOCEXCL
        return not is_passing(error)
    return True


@contextmanager
def _linked(link: str, target: str) -> Iterator[None]:
    """Keep a symlink to a pty during the block; replace one that led to an earlier pty."""
    if not link:
        yield
        return
    try:
        refuse_own(link)
        if _points_at(link).startswith("/dev/pts/"):
            os.unlink(link)
        os.symlink(target, link)
    except FileExistsError:
        taken = f"{link} exists and is not a link to a pty: choose another path"
        raise VconfsError(taken) from None
    except OSError as error:
        raise cannot(link, error) from None
    try:
        yield
    finally:
        if _points_at(link) == target:
            with suppress(OSError):
                os.unlink(link)


def _points_at(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""

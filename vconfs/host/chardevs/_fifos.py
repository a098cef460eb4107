"""Fifos that others may remove and replace at any time: the work of the pipe chardev."""

from __future__ import annotations

import os
import select
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import trio
from attrs import frozen

from vconfs.errors import VconfsError
from vconfs.host.chardev import PortSide
from vconfs.host.chardevs._client import pass_on, serve_anew
from vconfs.system.backoff import LAST_PAUSE, Backoff
from vconfs.system.descriptors import owned
from vconfs.system.file_access import PRIVATE, FileAccess
from vconfs.system.inotify import Change, watching
from vconfs.system.own_mounts import refuse_own
from vconfs.system.path_errors import cannot
from vconfs.system.pipes import Pipe

_CHANGES: Final = (
    Change.CREATED
    | Change.DELETED
    | Change.MOVED_FROM
    | Change.MOVED_TO
    | Change.DELETED_SELF
    | Change.MOVED_SELF
)


@frozen
class _Fifo:
    """A fifo that is open for reading and writing."""

    path: str
    descriptor: int

    @property
    def in_place(self) -> bool:
        """True if the path still leads to this fifo."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except OSError:
            return False

    def take_back(self) -> bytes:
        """Return what was written and no reader can get; then the fifo can only be closed."""
        with suppress(OSError):
            writer = os.open(f"/proc/self/fd/{self.descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(writer, self.descriptor, inheritable=False)  # ours was a reader, too
            os.close(writer)
            if _has_reader(self.descriptor):
                return b""
            reader = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_NONBLOCK)
            with owned(reader):
                return b"".join(iter(lambda: Pipe(reader).receive_nowait() or b"", b""))
        return b""


def _has_reader(writer: int) -> bool:
    poll = select.poll()
    poll.register(writer, 0)  # POLLERR is always reported
    return not poll.poll(0)


@contextmanager
def _opened(path: str, access: FileAccess) -> Iterator[_Fifo]:
    """Open a fifo; if there is none, make one for the block. Raise VconfsError if that fails."""
    made = _make_fifo(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        if made:
            _remove(path)
        raise cannot(path, error) from None
    opened = _Fifo(path, descriptor)
    try:
        if made:
            _set_access(opened, access)
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):  # it has just been replaced
            made = False
            raise VconfsError(f"{path} exists and is not a fifo: choose another path")
        yield opened
    finally:
        if made and opened.in_place:
            _remove(path)
        os.close(descriptor)


def _set_access(fifo: _Fifo, access: FileAccess) -> None:
    try:
        access.apply(fifo.descriptor)
    except OSError as error:
        raise cannot(fifo.path, error) from None


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _make_fifo(path: str) -> bool:
    """Make a fifo; return False if it exists already."""
    try:
        refuse_own(path)
        os.mkfifo(path, PRIVATE)
    except FileExistsError as error:
        try:
            mode = os.stat(path).st_mode
        except OSError:  # a link to nowhere
            raise cannot(path, error) from None
        if not stat.S_ISFIFO(mode):
            raise VconfsError(f"{path} exists and is not a fifo: choose another path") from None
        return False
    except OSError as error:
        raise cannot(path, error) from None
    return True


class Way(ABC):
    """Copies one way through a fifo of a port, and goes on with a fifo that replaces it."""

    def __init__(self, port: PortSide, path: str, access: FileAccess) -> None:
        self._port = port
        self._path = path
        self._access = access
        self._tries = Backoff(f"port {port.id}", f"port {port.id}: {path} is there again")
        self._fifo: _Fifo | None = None  # None when the path is to be opened again
        self._turn = trio.CancelScope()  # around waiting for the fifo

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Copy until cancelled; raise VconfsError if the fifo cannot be opened at first."""
        await serve_anew(self._tries, self._serve, task_status.started)

    def reopen(self) -> None:
        """Open the path again if that waits to be retried, or if it leads to another fifo."""
        self._tries.try_now()
        self.follow()

    def follow(self) -> bool:
        """Open the path again if it leads to another fifo or to none; return True if so.

        What is in the old fifo is not lost.
        """
        if self._fifo is None or self._fifo.in_place:
            return False
        self._fifo = None
        self._turn.cancel()
        return True

    async def _serve(self, ready: Callable[[], None]) -> None:
        with _opened(self._path, self._access) as fifo:
            self._fifo = fifo
            ready()
            await self._copy(fifo)

    @abstractmethod
    async def _copy(self, fifo: _Fifo) -> None:
        """Copy until the path is to be opened again, and then what is left in `fifo`."""


class Incoming(Way):
    """Copies what others write to the fifo to the guest."""

    async def _copy(self, fifo: _Fifo) -> None:
        source = Pipe(fifo.descriptor)
        while self._fifo is fifo:
            data = b""
            with trio.CancelScope() as self._turn, self._port.listening() as listening:
                data = await source.receive()
            if listening.cancelled_caught:
                await trio.sleep_forever()
            if data:
                await self._port.send(data)
        while rest := source.receive_nowait():
            await self._port.send(rest)


class Outgoing(Way):
    """Copies what the guest sends to the fifo."""

    async def _copy(self, fifo: _Fifo) -> None:
        sink = Pipe(fifo.descriptor)
        self._port.unread = sink.unread
        try:
            with trio.CancelScope() as self._turn:
                while True:
                    await sink.writable()  # until then the data is left in the port
                    await pass_on(self._port, sink.send)
        finally:
            self._port.unread = None
            self._port.put_back(fifo.take_back())


async def follow(folder: str, ways: Sequence[Way]) -> None:
    """Let the ways, all of them in `folder`, follow their paths whenever the folder changes."""
    while True:
        try:
            with watching(folder, _CHANGES) as changes:
                while not _follow_all(ways):  # after a change the folder may be another one, too
                    await changes.wait()
                    changes.happened = False
        except OSError:  # the folder is gone, or no inotify instance is left
            await trio.sleep(LAST_PAUSE)
            _follow_all(ways)


def _follow_all(ways: Sequence[Way]) -> bool:
    followed = [way.follow() for way in ways]
    return any(followed)

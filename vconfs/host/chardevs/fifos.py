"""Fifos that others may remove, and make anew, at any time: the work of the pipe chardev."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio
from attrs import define, field, frozen

from vconfs.host.chardev import ChardevError, PortSide
from vconfs.host.chardevs.paths import cannot
from vconfs.inotify import Change, watch
from vconfs.pipe import Pipe

_CHANGES: Final = (
    Change.CREATED
    | Change.DELETED
    | Change.MOVED_FROM
    | Change.MOVED_TO
    | Change.DELETED_SELF
    | Change.MOVED_SELF
)


@frozen
class Fifo:
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
        """Return what was written and can reach no reader any more; then it can only be closed."""
        with suppress(OSError):
            writer = os.open(f"/proc/self/fd/{self.descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(writer, self.descriptor, inheritable=False)  # ours was a reader as well
            os.close(writer)
            if _has_reader(self.descriptor):
                return b""
            reader = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_NONBLOCK)
            try:
                return b"".join(iter(lambda: Pipe(reader).receive_nowait() or b"", b""))
            finally:
                os.close(reader)
        return b""


def _has_reader(writer: int) -> bool:
    poll = select.poll()
    poll.register(writer, 0)  # POLLERR is always told
    return not poll.poll(0)


@contextmanager
def fifo(path: str) -> Iterator[Fifo]:
    """Open a fifo, and make it for that long if there is none; ChardevError."""
    made = _make_fifo(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        if made:
            _remove(path)
        raise cannot(path, error) from None
    opened = Fifo(path, descriptor)
    try:
        yield opened
    finally:
        if made and opened.in_place:
            _remove(path)
        os.close(descriptor)


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _make_fifo(path: str) -> bool:
    """Make a fifo; return False if there is one."""
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError as error:
        try:
            mode = os.stat(path).st_mode
        except OSError:  # a link to nowhere
            raise cannot(path, error) from None
        if not stat.S_ISFIFO(mode):
            raise ChardevError(f"{path} exists and is no fifo: choose another path") from None
        return False
    except OSError as error:
        raise cannot(path, error) from None
    return True


async def wait_replaced(*fifos: Fifo) -> None:
    """Wait until the path of one of the fifos, which are in one folder, leads elsewhere."""
    try:
        changes = watch(os.path.dirname(fifos[0].path) or ".", _CHANGES)
    except OSError:
        if all(fifo.in_place for fifo in fifos):  # there are no more inotify instances
            await trio.sleep_forever()
        return
    try:
        while all(fifo.in_place for fifo in fifos):
            await trio.lowlevel.wait_readable(changes)
            os.read(changes, 1 << 16)
    finally:
        os.close(changes)


@define(eq=False)
class Incoming:
    """Copies from a fifo to the guest, until it is ended and the fifo is empty."""

    _port: PortSide
    _source: Pipe
    _ended: bool = False
    _waiting: trio.CancelScope = field(init=False, factory=trio.CancelScope)

    def end(self) -> None:
        """Wait for nothing more to come."""
        self._ended = True
        self._waiting.cancel()

    async def copy(self) -> None:
        """Send the guest what comes; nothing that was read is lost when it is ended."""
        while not self._ended:
            data = b""
            with trio.CancelScope() as self._waiting:
                data = await self._source.receive()
            if data:
                await self._port.send(data)
        while rest := self._source.receive_nowait():
            await self._port.send(rest)

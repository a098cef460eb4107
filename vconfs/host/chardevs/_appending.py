"""Appending to a file that fails for a while, or is rotated: the work of the file chardev.

Nothing is lost when a file cannot be written for a while (the disk is full, its folder is gone,
the reader of a fifo has left): the data stays in the port, which throttles the guest when its
queue is full, and the write is tried again with growing pauses.

Before each write the path is compared with the open file; if the file was rotated, the path is
opened again. That is done for regular files only. A device or a fifo stays the same for a program
that has it open; it is opened again when a write fails.
"""

from __future__ import annotations

import os
import stat
from typing import Final

import trio
from attrs import define, field

from vconfs.host.chardev import PortSide
from vconfs.host.chardevs._client import pass_on
from vconfs.system.backoff import Backoff
from vconfs.system.file_access import OUR_OWN, PRIVATE, FileAccess
from vconfs.system.own_mounts import refuse_own
from vconfs.system.path_errors import cannot

#: How many bytes to write at a time: enough to be worth the thread that writes them.
_PIECE: Final = 1 << 20
#: The same after a failure: most of the data stays in the port, and the guest stays throttled.
_PROBE: Final = 1 << 12


@define
class AppendedFile:
    """The file at a path, open for appending. Its methods may block, so threads call them."""

    path: str
    access: FileAccess  # of a file that we make
    stale: bool = True  # it must be opened again before it is written to
    descriptor: int = -1
    _regular: os.stat_result | None = None  # of the open file, if it is a regular file

    def open(self) -> None:
        """Open what the path leads to now; after an OSError the old file is still open."""
        self.stale = False  # first, because it may be set again while this runs
        descriptor = self._opened()
        self.close()
        self.descriptor, status = descriptor, os.fstat(descriptor)
        self._regular = status if stat.S_ISREG(status.st_mode) else None

    def _opened(self) -> int:
        refuse_own(self.path)
        # With O_NONBLOCK, opening a fifo without a reader fails.
        how = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        try:
            return os.open(self.path, how)
        except FileNotFoundError:
            descriptor = os.open(self.path, how | os.O_CREAT, PRIVATE)
        try:
            if self.access != OUR_OWN:
                self.access.apply(descriptor)
        except OSError:  # the next try is to make it anew
            os.unlink(os.path.realpath(self.path))
            os.close(descriptor)
            raise
        return descriptor

    def append(self, data: memoryview) -> int:
        """Append some of `data` and return how many bytes; raise OSError if that fails."""
        if self._was_moved():
            self.open()
        return os.write(self.descriptor, data)

    def close(self) -> None:
        """Close the file if it is open."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _was_moved(self) -> bool:
        if self._regular is None:
            return False
        try:
            return not os.path.samestat(os.stat(self.path), self._regular)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # we cannot see now where the path leads
            return False


@define(eq=False)
class Appending:
    """Copies data from a port to a file, and tries again when that fails."""

    _port: PortSide
    _file: AppendedFile
    _tries: Backoff = field(init=False)
    _turn: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    _size: int = field(init=False, default=_PIECE)  # bytes to take in the next turn
    _written: int = field(init=False, default=0)  # bytes in this turn

    def __attrs_post_init__(self) -> None:
        where = f"port {self._port.id}"
        self._tries = Backoff(where, f"{where}: {self._file.path} can be written again")

    def reopen(self) -> None:
        """Open the file again, and write at once instead of waiting for the next try."""
        self._file.stale = True
        self._turn.cancel()
        self._tries.try_now()

    async def run(self) -> None:
        """Append until cancelled."""
        while True:
            try:
                await self._take_turn()
            except OSError as error:
                self._file.stale = True
                self._size = _PROBE
                await self._tries.failed(str(cannot(self._file.path, error)))

    async def _take_turn(self) -> None:
        while self._file.stale:
            await trio.to_thread.run_sync(self._file.open)
        self._written = 0
        with trio.CancelScope() as self._turn:
            await pass_on(self._port, self._append, self._size)
        if self._turn.cancelled_caught:
            return
        if self._size == _PIECE or self._written < self._size:  # else more data may wait
            self._tries.succeeded()
        self._size = _PIECE

    async def _append(self, data: memoryview) -> int:
        try:
            written = await trio.to_thread.run_sync(self._file.append, data)
        except BlockingIOError:  # a fifo or a terminal that takes nothing now
            await trio.lowlevel.wait_writable(self._file.descriptor)
            return 0
        self._written += written
        return written

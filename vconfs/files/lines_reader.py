"""An open file without end that a program reads line by line: of events, or of a tap."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field
from trio.lowlevel import ParkingLot

from vconfs.guest.opener import Opener
from vconfs.protocol.events import Buffer
from vconfs.protocol.lines import LineBacklog

_READABLE: Final = select.POLLIN | select.POLLRDNORM


@define(eq=False)
class LinesReader:
    """One opener of the file. The file system uses it like a `Port`."""

    #: Called when what a poll shows may have changed.
    on_change: Callable[[LinesReader], None]
    lines: LineBacklog
    #: Called with the opener when it closes the file.
    _forget: Callable[[Opener], None]
    #: Set when the mount ends: after the remaining lines comes end of file.
    ended: bool = field(init=False, default=False)
    _readable: ParkingLot = field(init=False, factory=ParkingLot)

    def wake(self) -> None:
        """Wake readers and notify pollers."""
        self._readable.unpark_all()
        self.on_change(self)

    def end(self) -> None:
        """End the file, because the mount ends."""
        self.ended = True
        self.wake()

    def answer_poll(self, opener: Opener | None = None) -> int:
        """Return the poll(2) mask."""
        mask = _READABLE if self.lines or self.ended else 0
        return mask | (select.POLLHUP if self.ended else 0)

    def take_nowait(self, size: int, opener: Opener | None = None) -> list[Buffer]:
        """Take up to `size` bytes; return none if the mount ends. Raise trio.WouldBlock."""
        taken: list[Buffer] = list(self.lines.take(size))
        if not taken and not self.ended:
            raise trio.WouldBlock
        return taken

    async def take(self, size: int, opener: Opener | None = None) -> list[Buffer]:
        """Like `take_nowait`, but wait for a line."""
        while True:
            try:
                return self.take_nowait(size)
            except trio.WouldBlock:
                await self._readable.park()

    def give_back(self) -> None:
        """Do nothing: lines are not lent."""

    def write_nowait(self, data: Buffer, *, nonblock: bool = False) -> int:
        """Refuse: the file is read-only."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    async def write(self, data: Buffer) -> int:
        """Like `write_nowait`: no write has to wait."""
        return self.write_nowait(data)

    def close(self, opener: Opener) -> None:
        """Forget the opener."""
        self._forget(opener)

"""The bytes of a stream, through descriptors that never block."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from vconfs.protocol.events import Buffer

#: Ask the kernel for so much at a time; a socket's buffer holds about as much.
_READ_SIZE: Final = 1 << 18
#: A peer that never pauses is read so often until the others have their turn.
_TURN: Final = 4


class Wire:
    """A stream that is read from one descriptor and written to another, or to the same.

    Whoever makes one closes them. `read` is how to read, as by `os.read`.
    """

    def __init__(
        self, reader: int, writer: int, read: Callable[[int, int], bytes] = os.read
    ) -> None:
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._reader = reader
        self._writer = writer
        self._read = read
        self._reads = _TURN  # that there may be before we wait

    async def receive(self) -> bytes:
        """Wait for bytes; none: the stream has ended. OSError: it broke."""
        while True:
            if not self._reads:
                with suppress(PermissionError):  # a file: nobody has to wait for it
                    await trio.lowlevel.wait_readable(self._reader)
                self._reads = _TURN
            try:
                data = self._read(self._reader, _READ_SIZE)
            except BlockingIOError:
                self._reads = 0
                continue
            # What is less than was asked for is all that there is.
            self._reads = self._reads - 1 if len(data) == _READ_SIZE else 0
            return data

    def send_nowait(self, pieces: Sequence[Buffer]) -> int:
        """Send what is taken at once, and tell how many bytes that was. OSError: it broke."""
        try:
            return os.writev(self._writer, pieces)
        except BlockingIOError:
            return 0

    async def writable(self) -> None:
        """Wait until something can be sent, or never any more."""
        await trio.lowlevel.wait_writable(self._writer)

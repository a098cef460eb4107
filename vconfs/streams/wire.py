"""Reading and writing the bytes of a stream, with non-blocking descriptors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from vconfs.protocol.events import Buffer

#: Bytes to request in one read; a socket's buffer holds about as many.
_READ_SIZE: Final = 1 << 18
#: The most reads from a peer that never pauses before the others have their turn.
_TURN: Final = 4


class Wire:
    """A stream that is read from one descriptor and written to another, or to the same one.

    The caller closes the descriptors. `read` is called to read, like `os.read`.
    """

    def __init__(
        self, reader: int, writer: int, read: Callable[[int, int], bytes] = os.read
    ) -> None:
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._reader = reader
        self._writer = writer
        self._read = read
        self._reads = _TURN  # how many are left before we wait

    async def receive(self) -> bytes:
        """Wait for bytes, and return them; none at the end of the stream.

        Raise OSError if the stream broke.
        """
        while True:
            if not self._reads:
                with suppress(PermissionError):  # a file, which is always readable
                    await trio.lowlevel.wait_readable(self._reader)
                self._reads = _TURN
            try:
                data = self._read(self._reader, _READ_SIZE)
            except BlockingIOError:
                self._reads = 0
                continue
            # A short read has emptied the stream.
            self._reads = self._reads - 1 if len(data) == _READ_SIZE else 0
            return data

    def send_nowait(self, pieces: Sequence[Buffer]) -> int:
        """Send what the stream takes at once, and return how many bytes that was.

        Raise OSError if the stream broke.
        """
        try:
            return os.writev(self._writer, pieces)
        except BlockingIOError:
            return 0

    async def writable(self) -> None:
        """Wait until bytes can be sent, or the stream is broken."""
        await trio.lowlevel.wait_writable(self._writer)

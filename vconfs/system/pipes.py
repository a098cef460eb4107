"""Pipes, fifos and ptys as streams."""

from __future__ import annotations

import os
from typing import Final

import trio

from vconfs.protocol.events import Buffer
from vconfs.system.queue_sizes import bytes_to_read

#: Bytes to request in one read.
_CHUNK: Final = 1 << 16


class Pipe:
    """A non-blocking descriptor of a pipe, fifo, pty or file, as a stream."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor

    async def receive(self) -> bytes:
        """Wait for bytes and return them, or none at end of file."""
        await trio.lowlevel.checkpoint()  # a writer that never pauses must not starve the others
        while (data := self.receive_nowait()) is None:
            await trio.lowlevel.wait_readable(self.descriptor)
        return data

    def receive_nowait(self) -> bytes | None:
        """Return the bytes that are there, none at end of file, or None if nothing has come yet."""
        try:
            return os.read(self.descriptor, _CHUNK)
        except BlockingIOError:
            return None

    def send_nowait(self, data: Buffer) -> int:
        """Send what the pipe takes at once, and return its size. Raise OSError if that fails."""
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:
            return 0

    async def send(self, data: Buffer) -> int:
        """Wait until the pipe takes some bytes, and return how many. Raise OSError on failure."""
        while not (sent := self.send_nowait(data)):
            await self.writable()
        return sent

    async def writable(self) -> None:
        """Wait until bytes can be sent."""
        await trio.lowlevel.wait_writable(self.descriptor)

    def unread(self) -> int:
        """Return how many bytes in a pipe or fifo have not been read."""
        return bytes_to_read(self.descriptor)

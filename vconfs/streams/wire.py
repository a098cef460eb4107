"""Reading and writing the bytes of a stream, with non-blocking descriptors."""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from vconfs.link.busy_polling import SHARED, Looks
from vconfs.overrides import override
from vconfs.protocol.events import Buffer
from vconfs.system.queue_sizes import bytes_to_read, bytes_to_send
from vconfs.system.shell_programs import Program

#: Bytes to request in one read; a socket's buffer holds about as many.
_READ_SIZE: Final = 1 << 18
#: The most reads from a peer that never pauses before the others have their turn.
_TURN: Final = 4


class Wire:
    """A stream that is read from one descriptor and written to another, or to the same one.

    The caller closes the descriptors. `read` is called to read, like `os.read`.
    """

    #: True if the stream ends when the other side leaves.
    has_end = True
    #: True if the other side still gets what it has not read when we close our descriptors.
    outlives_us = True

    def __init__(
        self, reader: int, writer: int, read: Callable[[int, int], bytes] = os.read
    ) -> None:
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._reader = reader
        self._writer = writer
        self._read = read
        self._reads = _TURN  # how many are left before we wait
        self._has_waited = False  # since the last read
        #: An emptied stream is read again before we wait. Tests replace this.
        self.looks: Looks = Looks(SHARED)
        #: That of `looks`.
        self.patience: float = 0.0
        self._found = False  # True if the last read has found something
        #: When bytes of the peer's hello came last; None if none have come yet.
        self.heard_at: float | None = None
        mode = os.fstat(writer).st_mode
        self._bytes_unread = bytes_to_read if stat.S_ISFIFO(mode) else bytes_to_send
        self._can_ask_unread = not stat.S_ISREG(mode)

    async def receive(self) -> bytes:
        """Wait for bytes and return them, or none at the end of the stream.

        Raise OSError if the stream broke.
        """
        while True:
            if not self._reads and not self.looks.again(found=self._found):
                await self._wait_readable()
            try:
                data = self._read(self._reader, _READ_SIZE)
            except BlockingIOError:
                self._reads = 0
                self._found = False
                continue
            self._found = True
            if self._has_waited:
                self._has_waited = False
                self.looks.begin(len(data), self.patience)
            # A short read has emptied the stream.
            self._reads = self._reads - 1 if len(data) == _READ_SIZE else 0
            return data

    async def _wait_readable(self) -> None:
        with suppress(PermissionError):  # a file, which is always readable
            await trio.lowlevel.wait_readable(self._reader)
        self._reads = _TURN
        self._has_waited = True

    @property
    def has_input(self) -> bool:
        """True if bytes, or the end of the stream, can be received at once."""
        waiting = select.poll()
        waiting.register(self._reader, select.POLLIN)
        return bool(waiting.poll(0))

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

    def unread(self) -> int:
        """Return how many sent bytes the other side has not read, as far as the kernel knows.

        A unix socket counts its own overhead too.
        """
        if not self._can_ask_unread:
            return 0
        try:
            return self._bytes_unread(self._writer)
        except OSError:  # a descriptor of another kind, or a line that is gone
            self._can_ask_unread = False
            return 0

    @property
    def is_busy(self) -> bool:
        """True if the other side may still be working after the end of its stream."""
        return False

    async def end_output(self) -> None:
        """Send the end of the stream, if a program waits for it."""

    async def end(self) -> int:
        """Send nothing more, and return how many sent bytes are lost because of that."""
        return 0 if self.outlives_us else self.unread()


class TcpWire(Wire):
    """A TCP connection, which loses what the peer's kernel has not acknowledged when we leave."""

    outlives_us = False

    def __init__(self, sock: trio.socket.SocketType) -> None:
        super().__init__(sock.fileno(), sock.fileno())
        self._sock = sock

    @override
    async def end(self) -> int:
        """End with a reset if not everything has arrived."""
        if unread := self.unread():
            linger = struct.pack("ii", 1, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return unread


class TtyWire(Wire):
    """A terminal line, which nothing tells that the other side has left."""

    has_end = False
    outlives_us = False

    def __init__(self, line: int) -> None:
        super().__init__(line, line)

    @override
    async def end(self) -> int:
        """Remove what the line has not sent, because the close would wait for it."""
        if unread := self.unread():
            with suppress(termios.error):
                termios.tcflush(self._writer, termios.TCOFLUSH)
        return unread


class ProgramWire(Wire):
    """The input and output of a program."""

    outlives_us = False

    def __init__(self, program: Program) -> None:
        super().__init__(program.output.descriptor, program.input.descriptor)
        self._program = program
        self._lost: int | None = None

    @override
    def unread(self) -> int:
        return self._program.unread() if self._lost is None else self._lost

    @property
    @override
    def is_busy(self) -> bool:
        return self._lost is None and not self._program.has_ended

    @override
    async def end_output(self) -> None:
        await self._program.close_input()

    @override
    async def end(self) -> int:
        """End the program if it still runs."""
        if self._lost is not None:
            return self._lost
        with trio.CancelScope(shield=True):
            self._lost = lost = await self._program.end()
        return lost

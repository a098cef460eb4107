"""The far side of a port as trio streams, for a program that embeds the host end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

import trio

from vconfs.host.chardev import Chardev, PortSide
from vconfs.overrides import override
from vconfs.protocol.events import Buffer

#: How many bytes `receive_some` returns at most by default.
_CHUNK: Final = 1 << 16


class PortListener(Chardev, trio.abc.Listener["PortStream"]):
    """The far side of one port: a stream for each time that the guest opens it.

    It is both the chardev of a HostPortSpec and a listener for `trio.serve_listeners`. The port is
    connected until the listener is closed. There is one stream at a time: the next one comes when
    the one before it was closed, or read to its end. Until it is accepted, what the guest sends
    waits in the port, which throttles the guest when its queue is full.
    """

    keeps_sessions = True

    def __init__(self) -> None:
        self._offers, self._offered = trio.open_memory_channel[PortStream](0)
        self._stream: PortStream | None = None
        self._closed = False
        self._running = trio.CancelScope()

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take no argument."""
        if argument:
            raise ValueError(f"a listener takes no argument, not {argument!r}")
        return cls()

    async def accept(self) -> PortStream:
        """Wait until the guest opens the port, and return a stream for that.

        Raise trio.ClosedResourceError if the listener was closed or its port removed.
        """
        try:
            return await self._offered.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("the port was removed") from None

    async def aclose(self) -> None:
        """Accept nothing more; the port is disconnected when the present stream has ended."""
        self._closed = True
        self._offered.close()
        if self._stream is None:
            self._running.cancel()
        await trio.lowlevel.checkpoint()

    @override
    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        port.connect()
        task_status.started()
        with self._running, self._offers:
            await port.next_session()
            while True:
                stream = PortStream(port)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.wait_for_the_next)
                    await self._offers.send(stream)
                    await self._see_out(stream, port)

    async def _see_out(self, stream: PortStream, port: PortSide) -> None:
        self._stream, port.hang_up_client = stream, stream.hang_up
        try:
            await stream.drop_the_rest()
        finally:
            stream.hang_up()
            self._stream = port.hang_up_client = None
        if self._closed:
            self._running.cancel()


class PortStream(trio.abc.HalfCloseableStream):
    """A port from the guest's open to its close: bytes, both ways.

    Sending waits while the guest throttles the port; what is not received makes the host end
    throttle the guest. The guest's close is an end of file here, and `send_eof` or `aclose` is an
    end of file for the guest. The guest may go on sending after `aclose`, but that is dropped
    until it opens the port again.
    """

    def __init__(self, port: PortSide) -> None:
        self._port = port
        self._closed = False  # by the program
        self._said_all = False
        self._all_read = False  # up to where the guest closed the port
        self._followed = False  # the guest has opened the port again
        self._over = trio.Event()  # set when nothing more can be received
        self._sending = _OneAtATime("another task is sending")
        self._receiving = _OneAtATime("another task is receiving")

    # --- what the program does ------------------------------------------------------------

    async def send_all(self, data: Buffer) -> None:
        """Send all of `data` to the guest.

        Raise trio.BrokenResourceError if the guest has closed the port, or was hung up.
        """
        with self._sending.entered() as scope:
            await trio.lowlevel.checkpoint()
            self._check_can_send()
            await self._port.send(data)
        if scope.cancelled_caught:
            self._check_can_send()

    async def wait_send_all_might_not_block(self) -> None:
        """Raise as `send_all` would, else return: we cannot know when the guest takes data."""
        with self._sending.entered():
            await trio.lowlevel.checkpoint()
            self._check_can_send()

    async def send_eof(self) -> None:
        """Show the guest an end of file, and go on receiving."""
        with self._sending.entered():
            self._check_open()
            self._say_all()
            await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes from the guest; return none if it closed the port, or was hung up."""
        size = _CHUNK if max_bytes is None else max_bytes
        if not isinstance(size, int):
            raise TypeError(f"max_bytes is an integer, not {size!r}")
        if size < 1:
            raise ValueError(f"max_bytes is at least 1, not {size}")
        data = b""
        with self._receiving.entered():
            await trio.lowlevel.checkpoint()
            self._check_open()
            if not self._over.is_set() and not (data := await self._port.receive(size)):
                self._read_all()
        self._check_open()
        self._port.delivered(len(data))
        return data

    async def aclose(self) -> None:
        """Close the stream, which is an end of file for a guest that is still there."""
        self._closed = True
        self.hang_up()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")

    def _check_can_send(self) -> None:
        self._check_open()
        if self._over.is_set() or self._followed or not self._port.guest_connected:
            raise trio.BrokenResourceError("the guest has closed the port")
        if self._said_all:
            raise trio.ClosedResourceError("send_eof has said that this is all")

    # --- what the listener does -----------------------------------------------------------

    def hang_up(self) -> None:
        """End the stream from our side."""
        self._over.set()
        self._sending.interrupt()
        self._receiving.interrupt()
        self._say_all()

    async def wait_for_the_next(self) -> None:
        """Return when the guest has opened the port again, and so no longer hears this stream."""
        await self._port.next_session()
        self._followed = True
        self._sending.interrupt()

    async def drop_the_rest(self) -> None:
        """Wait for the end of the stream, then drop the guest's data up to its close."""
        await self._over.wait()
        while not self._all_read:
            data = await self._port.receive()
            self._port.delivered(len(data))
            self._port.lost(len(data))
            self._all_read = not data

    def _read_all(self) -> None:
        self._all_read = True
        self._over.set()
        self._sending.interrupt()

    def _say_all(self) -> None:
        if not (self._said_all or self._all_read or self._followed):
            self._port.hang_up()
        self._said_all = True


class _OneAtATime:
    """A block that one task at a time can be in, and that others can interrupt."""

    def __init__(self, busy: str) -> None:
        self._busy = busy
        self._scope: trio.CancelScope | None = None

    @contextmanager
    def entered(self) -> Iterator[trio.CancelScope]:
        if self._scope is not None:
            raise trio.BusyResourceError(self._busy)
        with trio.CancelScope() as self._scope:
            try:
                yield self._scope
            finally:
                self._scope = None

    def interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

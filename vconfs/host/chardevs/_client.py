"""Joining a port to a client: `serve`, and what chardevs on streams have in common."""

from __future__ import annotations

import errno
import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

import trio

from vconfs.errors import VconfsError
from vconfs.host.chardev import PortSide
from vconfs.overrides import override
from vconfs.protocol.events import Buffer
from vconfs.system.backoff import Backoff, Pauses, is_passing
from vconfs.system.edges import wait_hang_up
from vconfs.system.unix_sockets import receive_bytes, takes_rights

log: Final = logging.getLogger(__name__)

#: How many bytes to read from a client at a time.
CHUNK: Final = 1 << 16
#: The same of a socket. By default a unix socket holds a little less.
_LARGE_CHUNK: Final = 1 << 18
#: Smaller data is queued, so that many small pieces are sent in one call.
_WORTH_SENDING: Final = 1 << 12


class Client(ABC):
    """The program at the far side of a port.

    It may have sent all its data and still listen, so its end of data and its being gone are two
    different events.
    """

    #: Takes guest data at once, like `PortSide.sink`. What it does not take waits for `take_from`.
    sink: Callable[[memoryview], int] | None = None

    @abstractmethod
    async def receive(self) -> Buffer:
        """Wait for data from the client; return none at its end. Valid until the next call."""

    @abstractmethod
    async def take_from(self, port: PortSide) -> None:
        """Wait until the client takes data and the port has some, and hand it over.

        What the client does not take stays in the port, also if this raises. An OSError means that
        the client is gone, unless the error is temporary (`is_passing`).
        """

    @abstractmethod
    async def gone(self) -> None:
        """Wait, after the end of its data, until the client is gone.

        An OSError means that it is gone, too, unless the error is temporary (`is_passing`).
        """

    def unread(self) -> int:
        """Return how many bytes that the client took it would lose if it was left now."""
        return 0

    def leave(self) -> int:
        """Leave the client for good, and return how many bytes it loses by that."""
        return self.unread()


async def serve(port: PortSide, client: Client) -> bool:
    """Join `port` and `client` until the client is gone and all its data is sent.

    Return False if the client was hung up; it may not have noticed yet.
    """
    with hang_up_scope(port) as scope:
        port.connect()
        port.unread, port.sink = client.unread, client.sink
        try:
            async with trio.open_nursery() as nursery:
                gone = trio.Event()
                nursery.start_soon(_hand_over, port, client, gone)
                # Also if the client can take no more: what it sent before it left is still sent.
                if await _listen(port, client):
                    nursery.start_soon(_watch, client, gone)
                await gone.wait()
                nursery.cancel_scope.cancel()
        finally:
            port.unread = port.sink = None
            port.lost(client.leave())
            port.disconnect()
    return not scope.cancelled_caught


async def _listen(port: PortSide, client: Client) -> bool:
    """Send the client's data to its end; return False if the port stops listening before that."""
    while True:
        with port.listening() as scope:
            data = await client.receive()
        if scope.cancelled_caught:
            return False
        if not len(data):
            return True
        sent = 0 if scope.cancel_called else port.send_nowait(data)
        if sent < len(data):
            await port.send(memoryview(data)[sent:])


@contextmanager
def hang_up_scope(port: PortSide) -> Iterator[trio.CancelScope]:
    """Let `PortSide.hang_up_client` cancel the block."""
    with trio.CancelScope() as scope:
        port.hang_up_client = scope.cancel
        try:
            yield scope
        finally:
            port.hang_up_client = None


@contextmanager
def can_reopen(port: PortSide, reopen: Callable[[], None]) -> Iterator[None]:
    """Let `PortSide.reopen` call `reopen` during the block."""
    port.reopen = reopen
    try:
        yield
    finally:
        port.reopen = None


async def serve_anew(
    tries: Backoff,
    serve_one: Callable[[Callable[[], None]], Awaitable[None]],
    ready: Callable[[], None],
    pausing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Call `serve_one` again and again; it calls its argument when it has all it needs.

    The first call gets `ready`, and may raise VconfsError. If a later call raises it, the next one
    follows after a pause, in the context manager that `pausing` returns.
    """
    await serve_one(ready)
    while True:
        try:
            await serve_one(tries.succeeded)
        except VconfsError as error:
            with pausing():
                await tries.failed(str(error))


async def _hand_over(port: PortSide, client: Client, gone: trio.Event) -> None:
    where = f"port {port.id}: guest data"
    tries = Backoff(f"{where} could not be delivered", f"{where} is delivered again")
    while True:
        try:
            await client.take_from(port)
        except OSError as error:
            if not is_passing(error):
                if error.errno != errno.EPIPE:  # the client had read all before it closed
                    log.warning("%s could not be delivered: %s", where, error.strerror)
                gone.set()
                return
            await tries.failed(error)
        else:
            tries.succeeded()


async def _watch(client: Client, gone: trio.Event) -> None:
    pauses = Pauses()
    while True:
        try:
            await client.gone()
        except OSError as error:
            if is_passing(error):  # no descriptor to watch with
                await trio.sleep(pauses.next())
                continue
        gone.set()
        return


async def pass_on(
    port: PortSide, send: Callable[[memoryview], Awaitable[int]], size: int = CHUNK
) -> None:
    """Wait for up to `size` bytes from the guest and send them.

    What is not sent, for any reason, goes back to the port.
    """
    rest = memoryview(await port.receive(size))
    try:
        while rest:
            sent = await send(rest)
            port.delivered(sent)
            rest = rest[sent:]
    finally:
        port.put_back(rest)


class SocketClient(Client):
    """The peer of a connected stream socket."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._takes_rights = takes_rights(sock)
        self.sink = self._sink
        #: The error that said that the client closed without reading all; the kernel says it once.
        self._reset: OSError | None = None

    @override
    async def receive(self) -> Buffer:
        try:
            if self._takes_rights:
                return await receive_bytes(self._sock, _LARGE_CHUNK)
            return await self._sock.recv(_LARGE_CHUNK)
        except OSError as error:
            self._reset = error
            return b""

    @override
    async def take_from(self, port: PortSide) -> None:
        await port.wait_for_data()
        try:
            sent = self._send_nowait(port.peek(_LARGE_CHUNK))
        except BlockingIOError:
            return await trio.lowlevel.wait_writable(self._sock)
        port.took(sent)
        await trio.lowlevel.checkpoint()

    def _sink(self, data: memoryview) -> int:
        if len(data) < _WORTH_SENDING:
            return 0
        try:
            return self._send_nowait([data])
        except OSError:  # `take_from` will report it
            return 0

    def _send_nowait(self, pieces: Sequence[Buffer]) -> int:
        try:
            return os.writev(self._sock.fileno(), pieces)
        except ConnectionResetError as error:
            self._reset = error
            raise
        except BrokenPipeError as error:
            if code := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._reset = OSError(code, os.strerror(code))
            raise self._reset or error from None

    @override
    async def gone(self) -> None:
        """Wait for a hang-up, which a unix socket reports when its peer closes after SHUT_WR."""
        await wait_hang_up(self._sock.fileno())

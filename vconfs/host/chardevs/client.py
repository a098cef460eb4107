"""Joining a port to somebody outside: `serve`, and what streams have in common."""

from __future__ import annotations

import logging
import select
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

import trio

from vconfs.errors import VconfsError
from vconfs.host.chardev import PortSide
from vconfs.protocol.events import Buffer
from vconfs.system.backoff import Backoff, Pauses, is_passing
from vconfs.system.unix_sockets import receive_bytes, takes_rights

log = logging.getLogger(__name__)

#: Read from outside this much at a time.
CHUNK: Final = 1 << 16


class Client(ABC):
    """Somebody at the far side of a port.

    They may have said all that they will say and still listen, so that being gone is a thing of
    its own.
    """

    @abstractmethod
    async def receive(self) -> Buffer:
        """Wait for what they say; none: they have said all. Good until the next call."""

    @abstractmethod
    async def take_from(self, port: PortSide) -> None:
        """Wait until they take something, then until the port has something, and hand it over.

        In this order, so that what they do not take stays in the port, also where this raises.
        OSError: they are gone, unless it is a passing one (`is_passing`).
        """

    @abstractmethod
    async def gone(self) -> None:
        """Wait, after all is said, until they are gone; OSError is as good, unless it passes."""

    def unread(self) -> int:
        """Tell how many bytes that they took they would lose if they were left now."""
        return 0

    def leave(self) -> int:
        """Leave them for good, and tell how many bytes they lose by that."""
        return self.unread()


async def serve(port: PortSide, client: Client) -> bool:
    """Join `port` and `client` until they are gone and all that they said is sent.

    False: they were hung up, and may not know it yet.
    """
    with hang_up_scope(port) as scope:
        port.connect()
        port.unread = client.unread
        try:
            async with trio.open_nursery() as nursery:
                gone = trio.Event()
                nursery.start_soon(_hand_over, port, client, gone)
                # Also when they can take no more: what they said before they left is still sent.
                if await _listen(port, client):
                    nursery.start_soon(_watch, client, gone)
                await gone.wait()
                nursery.cancel_scope.cancel()
        finally:
            port.unread = None
            port.lost(client.leave())
            port.disconnect()
    return not scope.cancelled_caught


async def _listen(port: PortSide, client: Client) -> bool:
    """Send what they say until they have said all; False: the port listens no more."""
    while True:
        with port.listening() as scope:
            data = await client.receive()
        if scope.cancelled_caught:
            return False
        if not len(data):
            return True
        await port.send(data)


@contextmanager
def hang_up_scope(port: PortSide) -> Iterator[trio.CancelScope]:
    """Serve a client in a block, which `PortSide.hang_up_client` cancels."""
    with trio.CancelScope() as scope:
        port.hang_up_client = scope.cancel
        try:
            yield scope
        finally:
            port.hang_up_client = None


@contextmanager
def can_reopen(port: PortSide, reopen: Callable[[], None]) -> Iterator[None]:
    """Have `PortSide.reopen` call `reopen` in a block."""
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
    """Call `serve_one` again and again; it calls its argument when it has what it needs.

    The first one calls `ready`, and may raise VconfsError. A later one that raises it is tried
    again, after a pause in the context manager that `pausing` makes.
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

    What is not sent, for whatever reason, goes back to the port.
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

    async def receive(self) -> Buffer:
        """See `Client`."""
        try:
            if self._takes_rights:
                return await receive_bytes(self._sock, CHUNK)
            return await self._sock.recv(CHUNK)
        except OSError:
            return b""  # reset: as good as closed

    async def take_from(self, port: PortSide) -> None:
        """See `Client`."""
        await trio.lowlevel.wait_writable(self._sock)
        await pass_on(port, self._sock.send)

    async def gone(self) -> None:
        """See `Client`; a unix socket's peer that closes after SHUT_WR is a hang-up."""
        await wait_hang_up(self._sock.fileno())


async def wait_hang_up(descriptor: int, successors: int | None = None) -> None:
    """Wait until a descriptor reports hang-up or error, or until `successors` is readable.

    An epoll set of its own, for a peer's end of file keeps the descriptor readable for ever.
    """
    with select.epoll() as news:
        news.register(descriptor, 0)  # EPOLLHUP and EPOLLERR are always told
        if successors is not None:
            news.register(successors, select.EPOLLIN)
        await trio.lowlevel.wait_readable(news)

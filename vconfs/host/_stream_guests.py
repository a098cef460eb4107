"""Serving guests over byte streams (v8 only).

A peer becomes a guest when it has said its hello, and its name if the listener is for several
guests. A guest has one connection: a peer that comes while it has one is refused with a BYE.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, TypeAlias

import trio

from vconfs.errors import VconfsError
from vconfs.host._greeting import Greetings
from vconfs.host.host import Host
from vconfs.link.link import leave_soon
from vconfs.protocol import v8
from vconfs.protocol.stream import NAMES, Role
from vconfs.streams.stream_address import StreamAddress
from vconfs.streams.stream_link import StreamLink, open_link
from vconfs.streams.url import parse_stream_address
from vconfs.streams.wire import Wire
from vconfs.system.backoff import Backoff, Pauses
from vconfs.system.log_once import LogOnce

log: Final = logging.getLogger(__name__)

#: Returns the ports of the guest with a name, or raises VconfsError with why it is refused.
Welcome: TypeAlias = Callable[[str | None], Awaitable[Host]]

#: What the log says when peers fail to say a hello, and when one has said it again.
_ONE_GUEST: Final = ("no guest", "a guest is there again")
_ANY_GUEST: Final = ("a peer did not become a guest", "a guest has connected")
#: The config space that is told to guests before they have said their name.
_NOT_KNOWN_YET: Final = v8.CONFIG.pack(0, 0, 1)


class _Refused(VconfsError):
    """The peer has said its hello, and is not served."""


async def serve_stream(
    host: Host | Welcome,
    rest: str,
    dialect: str | None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the guests that connect on `stream:REST`, until no more can.

    They have the ports of `host`, one after the other, or those that `host` returns for their
    names. Raise ValueError if `rest` is not valid, VconfsError if it is impossible to listen there.
    """
    address = parse_stream_address(rest)
    async with address.listen() as next_peer:
        task_status.started()
        texts = _ONE_GUEST if isinstance(host, Host) else _ANY_GUEST
        tries, trouble = Backoff(*texts, Pauses(last=address.pause_max)), LogOnce(log)

        async def serve_peer(wire: Wire, passed: Callable[[], None]) -> None:
            def attached() -> None:
                passed()
                tries.succeeded()

            await _serve_peer(host, f"stream:{rest}", address, wire, attached)

        async def failed(error: Exception) -> None:
            if isinstance(error, _Refused):
                trouble.warning(str(error), "guest refused: %s", error)
                await tries.wait()
                return
            await tries.failed(error if isinstance(error, OSError) else str(error))

        one_by_one = not address.has_many_peers
        await Greetings(next_peer).run(serve_peer, failed, one_by_one=one_by_one)


async def _serve_peer(
    host: Host | Welcome,
    url: str,
    address: StreamAddress,
    wire: Wire,
    attached: Callable[[], None],
) -> None:
    """Serve a peer until it leaves; call `attached` when it has become a guest."""
    said = _config(host) if isinstance(host, Host) else _NOT_KNOWN_YET
    served: Host | None = None
    named = False

    @asynccontextmanager
    async def turn(name: str | None) -> AsyncIterator[None]:
        nonlocal served, named
        named = name is not None
        async with AsyncExitStack() as stack:
            try:
                served = host if isinstance(host, Host) else await host(name)
                await stack.enter_async_context(served.turn.taken())
            except VconfsError as error:
                raise _Refused(str(error)) from None
            attached()
            yield

    features = v8.FEATURES | NAMES
    async with open_link(wire, address, Role.HOST, features, said, turn=turn) as link:
        assert served is not None
        await _serve_guest(served, link, b"" if named else said, url)


async def _serve_guest(host: Host, link: StreamLink, said: bytes, url: str) -> None:
    """Serve a guest that knows the config space `said` until it leaves."""

    def announce_config() -> None:
        link.send_config(_config(host))

    guest = host.attach(link, v8.HostEnd(link.features), announce_config, url)
    try:
        if _config(host) != said:  # it has changed since the hello, or the guest waits for it
            announce_config()
        guest.start()
        await guest.stopped.wait()
    finally:
        await leave_soon(link)  # with the guest still there, to take what comes
        host.detach()


def _config(host: Host) -> bytes:
    return v8.CONFIG.pack(*host.size, host.port_count)

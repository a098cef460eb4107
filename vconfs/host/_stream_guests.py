"""Serving guests over byte streams (v8 only)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

import trio

from vconfs.errors import VconfsError
from vconfs.host._reception import GREETED_MAX, Reception, receive_guests
from vconfs.host.host import Host
from vconfs.link.link import leave_soon
from vconfs.protocol import v8
from vconfs.protocol.stream import Role
from vconfs.streams.stream_address import NextGuest, StreamAddress
from vconfs.streams.stream_link import open_link
from vconfs.streams.url import parse_stream_address
from vconfs.streams.wire import Wire
from vconfs.system.backoff import Backoff, Pauses


async def serve_stream(
    host: Host,
    rest: str,
    dialect: str | None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the guests that connect on `stream:REST`, one after the other, until no more can.

    Raise ValueError if `rest` is not valid, VconfsError if it is impossible to listen there.
    """
    address = parse_stream_address(rest)
    async with address.listen() as next_guest:
        task_status.started()
        await _serve_all(host, address, next_guest)


async def _serve_all(host: Host, address: StreamAddress, next_guest: NextGuest) -> None:
    reception = Reception()
    tries = Backoff("no guest", "a guest is there again", Pauses(last=address.pause_max))

    async def serve_one() -> bool:
        try:
            async with AsyncExitStack() as stack:
                wire = await reception.let_in(lambda: stack.enter_async_context(next_guest()))
                if wire is None:
                    return False
                await _serve_guest(host, address, wire, reception, tries.succeeded)
        except VconfsError as error:
            await tries.failed(str(error))
        except OSError as error:  # for example, no descriptor is left
            await tries.failed(error)
        return True

    await receive_guests(serve_one, GREETED_MAX if address.has_many_peers else 1)


async def _serve_guest(
    host: Host,
    address: StreamAddress,
    wire: Wire,
    reception: Reception,
    attached: Callable[[], None],
) -> None:
    """Serve one guest until it leaves; call `attached` when it has finished its hello."""
    said, turn = _config(host), reception.as_guest()
    async with open_link(wire, address, Role.HOST, v8.FEATURES, said, turn) as link:

        def announce_config() -> None:
            link.send_config(_config(host))

        attached()
        guest = host.attach(link, v8.HostEnd(link.features), announce_config)
        try:
            guest.start()
            if _config(host) != said:  # it has changed since the hello
                announce_config()
            await guest.stopped.wait()
        finally:
            await leave_soon(link)  # with the guest still there, to take what comes
            host.detach()


def _config(host: Host) -> bytes:
    return v8.CONFIG.pack(*host.size, host.port_count)

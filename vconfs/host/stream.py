"""Guests at the other end of byte streams (v8 only)."""

from __future__ import annotations

import logging
from typing import Final

import trio

from vconfs.host.host import Host, HostError
from vconfs.protocol import v8
from vconfs.protocol.stream import Role
from vconfs.streams.errors import StreamError
from vconfs.streams.link import open_link
from vconfs.streams.place import NextGuest, Place
from vconfs.streams.url import parse_place
from vconfs.streams.wire import Wire

log = logging.getLogger(__name__)

#: Seconds to the next try where a guest cannot be met; each further one takes twice as long.
_FIRST_PAUSE: Final = 0.05


async def serve_stream(
    host: Host,
    rest: str,
    dialect: str | None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the guests that come on `stream:REST`, one after the other, until none can come.

    ValueError: `rest` makes no sense; HostError: nobody can listen there.
    """
    place = parse_place(rest)
    try:
        async with place.listen() as next_guest:
            task_status.started()
            await _serve_all(host, place, next_guest)
    except StreamError as error:
        raise HostError(str(error)) from None


async def _serve_all(host: Host, place: Place, next_guest: NextGuest) -> None:
    pause, said = _FIRST_PAUSE, ""
    while True:
        try:
            async with next_guest() as wire:
                if wire is None:
                    return
                await _serve_guest(host, place, wire)
            pause, said = _FIRST_PAUSE, ""
        except StreamError as error:
            if str(error) != said:
                log.warning("no guest: %s", error)
            said = str(error)
            await trio.sleep(pause)
            pause = min(2 * pause, place.pause_max)


async def _serve_guest(host: Host, place: Place, wire: Wire) -> None:
    """Serve one guest until it leaves."""
    said = _config(host)
    async with open_link(wire, place, Role.HOST, v8.FEATURES, said) as link:

        def announce_config() -> None:
            link.send_config(_config(host))

        backend = host.attach(link, v8.HostEnd(link.features), announce_config)
        try:
            backend.start()
            if _config(host) != said:  # since the hello
                announce_config()
            await backend.stopped.wait()
        finally:
            host.detach()


def _config(host: Host) -> bytes:
    return v8.CONFIG.pack(*host.size, host.port_count)

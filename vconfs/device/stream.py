"""A host end at the other end of a byte stream (v8 only)."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vconfs.link.link import OpenDevice
from vconfs.protocol import v8
from vconfs.protocol.stream import Role
from vconfs.streams.stream_link import open_link
from vconfs.streams.url import parse_stream_address


@asynccontextmanager
async def open_stream(rest: str, name: str | None = None) -> AsyncIterator[OpenDevice]:
    """Connect to the host end at `stream:REST`, as its guest `name`, by default the host name.

    Raise ValueError if `rest` is wrong, VconfsError if the host end cannot be reached.
    """
    address = parse_stream_address(rest)
    name = socket.gethostname() if name is None else name
    async with (
        address.connect() as wire,
        open_link(wire, address, Role.GUEST, v8.FEATURES, name=name) as link,
    ):
        yield link, v8.GuestEnd(link.features)

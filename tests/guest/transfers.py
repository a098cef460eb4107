"""Much data through a port of a guest."""

from __future__ import annotations

import hashlib

import trio

from tests.qemu.changes import pattern, receive_exactly
from tests.support.remote.client import Remote

#: What is written again and again: its size fits no buffer.
UNIT = pattern(1)[:251]


async def check_both_ways(remote: Remote, file: int, host: trio.SocketStream, size: int) -> None:
    """Check each byte of `size` bytes from the host, and then of as many to it."""
    data = pattern(size)[:size]
    await remote.set_blocking(file, True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.send_all, data)
        assert await remote.read_digest(file, size) == hashlib.sha256(data).hexdigest()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(remote.write_repeated, file, UNIT, size)
        assert await receive_exactly(host, size, seconds=30) == data

"""Leaving a stream: the other end gets what was accepted, or it is counted."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
import trio.testing

from vconfs.link.link import Link
from vconfs.protocol import v8
from vconfs.protocol.events import Buffer
from vconfs.protocol.stream import Closed, Connection, Frame, Role
from vconfs.streams.stream_link import StreamLink, open_link
from vconfs.streams.url import parse_stream_address
from vconfs.streams.wire import Wire

#: The bytes that the stream holds between the two ends.
PIPE = 1 << 16
PIECE = 100_000


class Owner:
    """The end that uses the link."""

    def __init__(self, link: Link) -> None:
        link.owner = self
        self.lost_for = ""
        self.untaken_at_end: dict[int, int] = {}
        self._link = link

    def received(self, queue: int) -> None:
        while self._link.receive(queue) is not None:
            self._link.done(queue)

    def room(self, queue: int) -> None: ...
    def config_changed(self) -> None: ...

    def lost(self, reason: str) -> None:
        self.lost_for = reason

    def left(self) -> None:
        self.untaken_at_end = dict(self._link.untaken())


class SlowPeer(Wire):
    """A wire to a host end that reads `step` bytes every `pause` seconds, up to `most` in all."""

    outlives_us = False

    def __init__(self, step: int, pause: float, most: int = 1 << 60) -> None:
        self.got = 0  # bytes of data
        self.has_left = False
        self._step, self._pause, self._most = step, pause, most
        self._pipe = bytearray()
        self._connection = Connection(Role.HOST)
        self._said = [self._connection.hello(v8.FEATURES, v8.CONFIG.pack(80, 25, 9))]

    async def receive(self) -> bytes:
        while not self._said and not self.has_left:
            await self._pass()
        return self._said.pop(0) if self._said else b""

    def send_nowait(self, pieces: Sequence[Buffer]) -> int:
        data = b"".join(pieces)[: PIPE - len(self._pipe)]
        self._pipe += data
        return len(data)

    async def writable(self) -> None:
        while len(self._pipe) >= PIPE:
            await self._pass()

    def unread(self) -> int:
        return len(self._pipe)

    async def _pass(self) -> None:
        await trio.sleep(self._pause / 10)

    async def run(self) -> None:
        """Read, and leave when the guest end has left."""
        while self._most > 0:
            await trio.sleep(self._pause)
            size = min(self._step, self._most)
            self._most -= size
            self._connection.feed(bytes(self._pipe[:size]))
            del self._pipe[:size]
            while (event := self._connection.next_event()) is not None:
                if isinstance(event, Frame):
                    self.got += len(event.payload) - v8.HEADER.size
                elif isinstance(event, Closed):
                    self.has_left = True
        await trio.sleep_forever()


@asynccontextmanager
async def linked(peer: SlowPeer) -> AsyncIterator[tuple[StreamLink, Owner]]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        address = parse_stream_address("unix:/unused")
        async with open_link(peer, address, Role.GUEST, v8.FEATURES) as link:
            yield link, Owner(link)
        nursery.cancel_scope.cancel()


def fill(link: Link) -> int:
    """Send data of ports 3 and 4 until no more is taken; return how much was."""
    end = v8.GuestEnd(link.features)
    size = 0
    while link.find_room(1, v8.HEADER.size) >= PIECE:
        port = 3 + size // PIECE % 2
        link.send(1, end.data_header(port, PIECE), os.urandom(PIECE), port_id=port)
        link.flush(1)
        size += PIECE
    return size


async def test_a_slow_peer_gets_all_that_was_accepted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = SlowPeer(4096, 4.0)
    async with linked(peer) as (link, owner):
        size = fill(link)
        assert size >= 3 * PIECE
        await link.leave(5)
        assert peer.has_left
        assert trio.current_time() > size / 4096 * 4
    assert peer.got == size
    assert owner.untaken_at_end == {}
    assert not owner.lost_for


async def test_what_a_peer_that_stops_has_not_read_is_counted_by_port(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = SlowPeer(4096, 0.1, most=250_000)
    async with linked(peer) as (link, owner):
        size = fill(link)
        begun = trio.current_time()
        await link.leave(5)
        assert 5 <= trio.current_time() - begun - 250_000 / 4096 * 0.1 < 6
    assert peer.got == 2 * PIECE
    assert sum(owner.untaken_at_end.values()) == size - 2 * PIECE
    assert owner.untaken_at_end.keys() == {3, 4}
    assert not owner.lost_for


async def test_one_cancellation_ends_the_wait(autojump_clock: trio.testing.MockClock) -> None:
    peer = SlowPeer(4096, 0.1, most=10_000)
    async with linked(peer) as (link, owner):
        size = fill(link)
        with trio.move_on_after(1):
            await link.leave(1000)
    assert trio.current_time() < 10
    assert sum(owner.untaken_at_end.values()) == size - peer.got == size


async def test_a_link_that_is_closed_at_once_waits_for_a_moment(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = SlowPeer(4096, 4.0)
    async with linked(peer) as (link, owner):
        size = fill(link)
        begun = trio.current_time()
    assert trio.current_time() - begun < 1
    assert peer.got + sum(owner.untaken_at_end.values()) == size

"""Which of too many peers at a stream listener are turned away, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing
from attrs import define

from vconfs.host._greeting import GREETED_MAX, Greetings
from vconfs.streams.wire import Wire

pytestmark = pytest.mark.expect_log("too many peers say no hello")


@define(eq=False)
class Peer:
    """A peer that stays until it is turned away."""

    has_input: bool = False
    heard_at: float | None = None
    turned_away_at: float | None = None


async def meet(peers: Sequence[Peer], seconds: float) -> None:
    """Let these peers come at once, and then no more for this time."""
    coming = list(peers)

    @asynccontextmanager
    async def next_peer() -> AsyncIterator[Wire | None]:
        await trio.lowlevel.checkpoint()
        if not coming:
            await trio.sleep_forever()
        yield cast(Wire, coming.pop(0))

    async def serve(wire: Wire, passed: Callable[[], None]) -> None:
        peer = cast(Peer, wire)
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            peer.turned_away_at = trio.current_time() - begun
            raise

    async def failed(error: Exception) -> None:
        raise error

    begun = trio.current_time()
    with trio.move_on_after(seconds):
        await Greetings(next_peer).run(serve, failed)


def away(peers: Sequence[Peer], seconds: float) -> list[Peer]:
    """Return the peers that were turned away, but not by the end of the test."""
    return [
        peer
        for peer in peers
        if peer.turned_away_at is not None and peer.turned_away_at < seconds - 0.001
    ]


async def test_silent_peers_make_room_soon(autojump_clock: trio.testing.MockClock) -> None:
    spoke = [Peer(heard_at=trio.current_time()) for _ in range(10)]
    silent = [Peer() for _ in range(GREETED_MAX)]
    await meet([*spoke, *silent], 1.0)
    gone = away([*spoke, *silent], 1.0)
    assert gone == silent[: len(gone)]
    assert len(gone) == 11  # the last one waits behind the door for its place
    assert gone[0].turned_away_at == pytest.approx(0.25)


async def test_peers_that_have_begun_have_longer(autojump_clock: trio.testing.MockClock) -> None:
    peers = [Peer(heard_at=trio.current_time()) for _ in range(GREETED_MAX + 2)]
    await meet(peers, 3.0)
    gone = away(peers, 3.0)
    assert gone == peers[:3]
    assert gone[0].turned_away_at == pytest.approx(2.0)


async def test_peers_that_wait_for_us_stay(autojump_clock: trio.testing.MockClock) -> None:
    peers = [Peer(has_input=True) for _ in range(GREETED_MAX + 2)]
    await meet(peers, 60.0)
    assert away(peers, 60.0) == []

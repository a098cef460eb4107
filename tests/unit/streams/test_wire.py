"""Reading a stream: when it is read again, and when it is waited for."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio

from tests.support.looks import steady_looks
from vconfs.streams.wire import Wire

MUCH = bytes(4096)


@pytest.fixture
def ends() -> Iterator[tuple[Wire, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Wire(ours.fileno(), ours.fileno()), theirs


async def test_a_peer_that_keeps_sending_is_read_without_waiting(
    ends: tuple[Wire, socket.socket],
) -> None:
    ours, theirs = ends
    left = 5

    def let_the_peer_run() -> None:
        nonlocal left
        if left:
            theirs.send(MUCH)
            left -= 1

    ours.looks = steady_looks(let_the_peer_run)
    theirs.send(MUCH)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    assert await ours.receive() == MUCH  # the first read
    theirs.send(MUCH)
    assert await ours.receive() == MUCH  # the first after a wait
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        before = turns
        for _ in range(5):
            assert await ours.receive() == MUCH
        assert turns == before
        nursery.cancel_scope.cancel()


async def test_a_peer_that_pauses_is_waited_for(ends: tuple[Wire, socket.socket]) -> None:
    ours, theirs = ends
    yields = 0

    def nothing_comes() -> None:
        nonlocal yields
        yields += 1

    ours.looks = steady_looks(nothing_comes)
    for _ in range(2):
        theirs.send(MUCH)
        assert await ours.receive() == MUCH
    with trio.move_on_after(0.01) as scope:
        await ours.receive()
    assert scope.cancelled_caught
    assert yields == 1

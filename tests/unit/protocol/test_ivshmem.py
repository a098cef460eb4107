"""Doorbells: what the server says, and what is made of a server that says something else."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from vconfs.device.qtest import _doorbells as doorbells
from vconfs.errors import VconfsError
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.ivshmem import MESSAGE, Peer

Messages = list[tuple[int, int | None]]


def told(messages: Messages) -> tuple[Peer, list[bool]]:
    peer = Peer()
    return peer, [peer.receive(MESSAGE.pack(value), fd) for value, fd in messages]


def test_a_peer_keeps_its_own_doorbells() -> None:
    others: Messages = [(1, 11), (1, 12), (3, 13)]
    peer, kept = told([(0, None), (2, None), (-1, 10), *others, (2, 14), (2, 15), (1, None)])
    assert kept == [False] * 6 + [True, True, False]
    assert peer.doorbells == [14, 15]
    assert [peer.ring(vector) for vector in range(2)] == [0x20000, 0x20001]


def test_a_peer_can_be_alone() -> None:
    peer, kept = told([(0, None), (0, None), (-1, 10), (0, 14)])
    assert kept == [False, False, False, True]
    assert peer.ring(0) == 0


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([(1, None)], "version 1"),
        ([(-1, 10)], "version -1"),
        ([(0, None), (-1, 10)], "peer id -1"),
        ([(0, None), (0x10000, None)], "peer id 65536"),
        ([(0, None), (0, None), (-2, None)], "peer id -2"),
        ([(0, None), (0, None), (1 << 40, 10)], "peer id 1099511627776"),
    ],
)
def test_messages_that_no_server_sends(messages: Messages, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        told(messages)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.none() | st.integers(3, 9))))
def test_any_messages(messages: Messages) -> None:
    try:
        peer, kept = told(messages)
    except RemoteProtocolError:
        return
    assert kept.count(True) == len(peer.doorbells)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "it has left"),
        (b"\0" * 4, "it has left"),
        (MESSAGE.pack(7), "version 7"),
        (MESSAGE.pack(0) + MESSAGE.pack(-5), "peer id -5"),
    ],
)
async def test_a_server_that_does_not_exist(sent: bytes, reason: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(VconfsError, match=f"server of doorbells: .*{reason}"):
            await doorbells._meet(ours, 1)


@pytest.fixture
def doorbell() -> Iterator[int]:
    event = os.eventfd(0)
    yield event
    os.close(event)


async def test_a_server_that_leaves_in_the_middle_leaves_nothing_open(doorbell: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for value in (0, 4, -1, 1, 4):
                socket.send_fds(
                    theirs, [MESSAGE.pack(value)], [doorbell] if value in (-1, 1, 4) else []
                )
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(VconfsError, match="it has left"):
                await doorbells._meet(ours, 2)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_wait_for_doorbells_that_is_cancelled_leaves_nothing_open(doorbell: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = len(os.listdir("/proc/self/fd"))
        for value in (0, 4, -1, 4):
            socket.send_fds(theirs, [MESSAGE.pack(value)], [doorbell] if value in (-1, 4) else [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(doorbells._meet, ours, 2)
            await trio.testing.wait_all_tasks_blocked()
            assert len(os.listdir("/proc/self/fd")) == before + 1
            nursery.cancel_scope.cancel()
        assert len(os.listdir("/proc/self/fd")) == before


async def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbells, "_SECONDS", 0.01)
    ours, theirs = socket.socketpair()
    with ours, theirs, trio.fail_after(20):
        with pytest.raises(VconfsError, match=r"has not sent 2 doorbells in 0\.01 s"):
            await doorbells._meet(ours, 2)

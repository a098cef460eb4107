"""Waiting with an epoll set in a thread."""

from __future__ import annotations

import os
import select
import socket
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.waiting import until
from vconfs.system.edges import Watch, wait_hang_up, watching_edges

ROOT = Path(__file__).parents[3]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def test_a_hang_up_is_seen_behind_data_and_the_end_of_data(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    theirs.send(b"data")
    theirs.shutdown(socket.SHUT_WR)
    with trio.move_on_after(0.05) as waiting:
        await wait_hang_up(ours.fileno())
    assert waiting.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_hang_up, ours.fileno())
        await trio.testing.wait_all_tasks_blocked()
        theirs.close()


async def test_edges_are_reported_once_each(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    seen: list[int] = []
    with watching_edges(ours.fileno(), select.EPOLLIN, seen.append):
        for count in range(1, 4):
            theirs.send(b"x")  # nothing reads it
            await until(partial(has_length, seen, count))
    assert seen == [select.EPOLLIN] * 3


def has_length(things: list[int], length: int) -> bool:
    return len(things) == length


async def test_several_tasks_wait_for_one_of_several() -> None:
    first, second = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
    with Watch({first: select.EPOLLIN, second: select.EPOLLIN}) as watch:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.wait)
            nursery.start_soon(watch.wait)
            await trio.testing.wait_all_tasks_blocked()
            os.eventfd_write(second, 1)
        await watch.wait()  # it is still there
        os.eventfd_read(second)
        with trio.move_on_after(0.05) as waiting:
            await watch.wait()
        assert waiting.cancelled_caught
    os.close(first)
    os.close(second)


async def test_a_number_that_was_another_descriptor_does_not_end_a_wait() -> None:
    """The thread may report the old one late."""
    for _ in range(100):
        old = os.eventfd(1)
        with watching_edges(old, select.EPOLLIN, lambda events: None):
            pass
        os.close(old)
        new = os.eventfd(0)
        with Watch({new: select.EPOLLIN}) as watch, trio.move_on_after(0) as waiting:
            await watch.wait()
        os.close(new)
        assert waiting.cancelled_caught


async def test_a_file_cannot_be_waited_for() -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(PermissionError):
        await wait_hang_up(file.fileno())


async def test_nothing_is_left_after_the_last_watch() -> None:
    def left() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    before = left()
    event = os.eventfd(0)
    with Watch({event: select.EPOLLIN}), Watch({event: select.EPOLLIN}):
        assert left() > before
    os.close(event)
    await until(lambda: left() == before)


def test_no_set_is_inside_of_trios() -> None:
    """Only these modules make sets: one in a thread, one in a program without an event loop."""
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "vconfs").rglob("*.py")
        if "select.epoll()" in path.read_text()
    }
    assert found == {"vconfs/cli/_joining.py", "vconfs/system/edges.py"}

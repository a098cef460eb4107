"""Notifications through descriptors that the peer has, too, and can do with as it likes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest
import trio
import trio.testing

from tests.support.waiting import until
from vconfs.link import notifications
from vconfs.link.notifications import Bell, Notices, Told, check_notifier
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.system.eventfds import is_semaphore

#: The most that the counter of an eventfd can be.
FULL = (1 << 64) - 2


@contextmanager
def full_eventfd() -> Iterator[int]:
    event = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        os.eventfd_write(event, FULL)
        yield event
    finally:
        os.close(event)


@contextmanager
def full_socket() -> Iterator[int]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(1 << 16))
        yield ours.fileno()


@pytest.mark.parametrize("full", [full_eventfd, full_socket])
def test_a_peer_that_lets_its_descriptor_block_does_not_block_us(
    full: Callable[[], AbstractContextManager[int]],
) -> None:
    with full() as fd:
        check_notifier(fd)
        os.set_blocking(fd, True)
        begun = time.monotonic()
        Bell(fd).ring()
        assert time.monotonic() - begun < 5


def test_a_file_cannot_be_a_notifier() -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(RemoteProtocolError, match="not an eventfd, pipe or unix socket"):
            check_notifier(file.fileno())


def test_a_semaphore_cannot_be_a_notifier() -> None:
    """One read does not empty it, so it would keep us busy without any work of the peer."""
    event = os.eventfd(1 << 31, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
    try:
        if not is_semaphore(event):
            pytest.skip("this kernel does not tell semaphores from other eventfds")
        with pytest.raises(RemoteProtocolError, match="is a semaphore"):
            check_notifier(event)
    finally:
        os.close(event)


#: Clears all flags of a descriptor without end.
FLIPPER = """
import fcntl, os, sys
while os.getppid() == int(sys.argv[2]):
    for _ in range(10000):
        fcntl.fcntl(int(sys.argv[1]), fcntl.F_SETFL, os.O_RDWR)
"""


def test_a_peer_that_clears_the_flags_all_the_time_does_not_block_us() -> None:
    with full_eventfd() as fd:
        command = [sys.executable, "-c", FLIPPER, str(fd), str(os.getpid())]
        with subprocess.Popen(command, pass_fds=[fd]) as flipper:
            bell = Bell(fd)
            for _ in range(100_000):
                bell.ring()
            flipper.kill()
        assert os.eventfd_read(fd) > FULL


def test_an_eventfd_that_has_room_is_raised_each_time() -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bell = Bell(event)
    for _ in range(1000):  # more than asynchronous I/O has places for
        bell.ring()
    assert os.eventfd_read(event) == 1000
    os.close(event)
    bell.ring()  # who closes it wants none


def test_where_eventfds_cannot_be_raised_there_is_no_bell(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_raiser() -> None:
        raise OSError(errno.EAGAIN, "io_setup: no more")

    monkeypatch.setattr(notifications, "raiser", no_raiser)
    with full_eventfd() as fd, pytest.raises(OSError, match="io_setup: no more"):
        Bell(fd)


def test_a_full_pipe_blocks_a_thread_and_not_the_event_loop() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    full = 0
    with suppress(BlockingIOError):
        while True:
            full += os.write(writer, bytes(1 << 12))
    os.set_blocking(writer, True)
    bell = Bell(writer)
    for _ in range(1000):
        bell.ring()
    assert len(os.read(reader, 2 * full)) == full
    os.close(writer)
    os.close(reader)


def test_a_tcp_socket_cannot_be_a_notifier() -> None:
    with socket.socket() as sock:
        with pytest.raises(RemoteProtocolError, match="not an eventfd, pipe or unix socket"):
            check_notifier(sock.fileno())


# --- notices ------------------------------------------------------------------------------


def an_eventfd() -> tuple[int, int]:
    event = os.eventfd(0, os.EFD_CLOEXEC)
    return event, os.dup(event)


def a_socket() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


@pytest.fixture(params=[an_eventfd, os.pipe, a_socket])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A descriptor that we listen to, and the peer's. Both block, if that is called for."""
    ours, theirs = request.param()
    yield ours, theirs
    for fd in (ours, theirs):
        with suppress(OSError):
            os.close(fd)


async def test_each_notification_is_told(ends: tuple[int, int], nursery: trio.Nursery) -> None:
    ours, theirs = ends
    told: Told[str] = Told()
    notices = Notices(told.add)
    notices.add(ours, "before it runs")
    nursery.start_soon(notices.run)
    for _ in range(3):
        Bell(theirs).ring()
        assert await told.take() == {"before it runs"}
    notices.remove(ours)
    notices.add(ours, "another meaning")
    Bell(theirs).ring()
    assert await told.take() == {"another meaning"}
    notices.remove(ours)
    Bell(theirs).ring()
    with trio.move_on_after(0.05) as waiting:
        await told.take()
    assert waiting.cancelled_caught


async def test_notices_may_be_removed_by_what_they_cause(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    async with trio.open_nursery() as nursery:

        def end(key: int) -> None:
            notices.remove(ours)
            os.close(ours)
            nursery.cancel_scope.cancel()

        notices = Notices(end)
        notices.add(ours, 1)
        nursery.start_soon(notices.run)
        Bell(theirs).ring()


@pytest.mark.parametrize("attempt", range(10))  # the order of the two is random
async def test_a_descriptor_that_is_removed_in_the_turn_of_its_notification_is_left_alone(
    attempt: int, nursery: trio.Nursery
) -> None:
    """Its number may be another descriptor's by then."""
    events, told = [os.eventfd(0), os.eventfd(0)], list[int]()

    def replace_the_other(index: int) -> None:
        told.append(index)
        other = events[1 - index]
        notices.remove(other)
        os.close(other)
        assert os.eventfd(7) == other

    notices = Notices(replace_the_other)
    for index, event in enumerate(events):
        notices.add(event, index)
    nursery.start_soon(notices.run)
    await trio.testing.wait_all_tasks_blocked()
    for event in events:
        os.eventfd_write(event, 1)
    await until(lambda: told)
    await trio.testing.wait_all_tasks_blocked()
    [index] = told
    assert os.eventfd_read(events[1 - index]) == 7
    notices.remove(events[index])
    for event in events:
        os.close(event)


async def test_a_peer_that_empties_its_descriptor_does_not_block_us(
    ends: tuple[int, int], nursery: trio.Nursery
) -> None:
    ours, theirs = ends
    told: Told[int] = Told()
    notices = Notices(told.add)
    notices.add(ours, 1)
    nursery.start_soon(notices.run)
    await trio.testing.wait_all_tasks_blocked()
    Bell(theirs).ring()
    os.set_blocking(ours, True)
    os.read(ours, 8)  # before our task runs
    await trio.testing.wait_all_tasks_blocked()
    Bell(theirs).ring()
    await told.take()


@pytest.mark.parametrize("kind", [os.pipe, a_socket])
async def test_the_peers_end_ends_the_listening(
    kind: Callable[[], tuple[int, int]], nursery: trio.Nursery
) -> None:
    ours, theirs = kind()
    told: Told[int] = Told()
    notices = Notices(told.add)
    notices.add(ours, 1)
    nursery.start_soon(notices.run)
    Bell(theirs).ring()
    await told.take()
    living = trio.lowlevel.current_statistics().tasks_living
    os.close(theirs)
    await until(lambda: trio.lowlevel.current_statistics().tasks_living < living)
    notices.remove(ours)
    os.close(ours)

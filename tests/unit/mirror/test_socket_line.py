"""The port of one socket: when it is connected, errors of an open, hang-ups, back-pressure."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.hypervisor import Channel, channel
from tests.support.waiting import until
from vconfs.guest.opener import Opener
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Port
from vconfs.mirror import _connecting, _socket_line
from vconfs.mirror._socket_line import SocketLine

LIMIT = 1 << 16


class SocketPort:
    """A port that is attached to the socket at a path."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.port = Port(0, PortOptions(limit=LIMIT))
        self.line = SocketLine(self.port, str(path), nursery)
        self.port.attach(self.line)

    async def open(self) -> Opener:
        """Open it as PortFS does."""
        opener = Opener(1)
        self.port.open(opener, quiet=True)
        try:
            await self.line.confirm_open()
        except BaseException:
            self.port.close(opener)
            raise
        return opener

    async def error_of_open(self) -> int:
        with pytest.raises(OSError) as caught:  # each test checks the number
            await self.open()
        return caught.value.errno or 0

    async def opened_with(self, server: Channel) -> tuple[Opener, trio.SocketStream]:
        async with trio.open_nursery() as nursery:
            streams: list[trio.SocketStream] = []

            async def accept() -> None:
                streams.append(await server.accept())

            nursery.start_soon(accept)
            opener = await self.open()
        return opener, streams[0]

    def fill(self) -> int:
        """Write until there is no room; return how much was written."""
        sent = 0
        with suppress(trio.WouldBlock):
            while True:
                sent += self.port.write_nowait(bytes(10_000), nonblock=True)
        return sent

    async def read(self, size: int = 1 << 20) -> bytes:
        return b"".join(await self.port.read(size))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Channel]:
    with channel(tmp_path / "web/agent") as server:
        yield server


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[SocketPort]:
    async with trio.open_nursery() as nursery:
        with trio.fail_after(20):
            yield SocketPort(tmp_path / "web/agent", nursery)
        nursery.cancel_scope.cancel()


async def test_the_socket_is_held_from_the_first_open_to_the_last_close(
    it: SocketPort, server: Channel
) -> None:
    with pytest.raises(BlockingIOError):
        server.client  # noqa: B018 # that raises if there is none
    first, stream = await it.opened_with(server)
    async with stream:
        assert it.port.host_connected
        second = await it.open()
        it.port.close(first)
        assert it.port.write_nowait(b"ping") == 4
        assert await stream.receive_some() == b"ping"
        await stream.send_all(b"pong")
        assert await it.read() == b"pong"
        it.port.close(second)
        assert not it.port.host_connected
        assert await stream.receive_some() == b""
    with pytest.raises(BlockingIOError):
        server.client  # noqa: B018
    opener, stream = await it.opened_with(server)
    it.port.close(opener)
    await stream.aclose()


async def test_an_open_waits_for_the_hypervisor_to_accept(it: SocketPort, server: Channel) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.open)
        nursery.start_soon(it.open)
        await trio.testing.wait_all_tasks_blocked()
        assert len(it.port.openers) == 2
        assert not it.port.host_connected
        stream = await server.accept()
    assert it.port.host_connected
    await stream.aclose()


async def test_an_open_that_is_interrupted_leaves_nothing(it: SocketPort, server: Channel) -> None:
    with trio.move_on_after(0.05) as scope:
        await it.open()
    assert scope.cancelled_caught
    assert not it.port.openers
    await trio.testing.wait_all_tasks_blocked()
    with server.client as client:
        assert client.recv(1) == b"", "what was in the backlog has gone"
    opener, stream = await it.opened_with(server)
    it.port.close(opener)
    await stream.aclose()


async def test_a_socket_that_another_program_has_is_busy(
    it: SocketPort, server: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connecting, "_ACCEPTING", 0.1)
    with ExitStack() as stack:
        for _ in range(3):  # the first would be served, the others fill the backlog
            assert await it.error_of_open() == errno.EBUSY
            other = stack.enter_context(socket.socket(socket.AF_UNIX))
            other.setblocking(False)
            try:
                other.connect(str(server.path))
            except BlockingIOError:
                break
        assert await it.error_of_open() == errno.EBUSY
    assert not it.port.openers


async def test_a_connection_that_is_closed_at_once_is_busy(it: SocketPort, server: Channel) -> None:
    async def close_at_once() -> None:
        await trio.lowlevel.wait_readable(server._listener)
        server.client.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close_at_once)
        assert await it.error_of_open() == errno.EBUSY


@pytest.mark.parametrize("kind", ["killed", "missing", "file", "link", "packets", "not ours"])
@pytest.mark.expect_log("Permission denied")
async def test_what_cannot_be_connected_has_an_error_of_its_own(
    it: SocketPort, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "web/agent"
    path.parent.mkdir()
    with ExitStack() as stack:
        match kind:
            case "killed":
                stack.enter_context(channel(path)).close()
                wanted = errno.ECONNREFUSED
            case "missing":
                wanted = errno.ENOENT
            case "file":
                path.touch()
                wanted = errno.ENOTSOCK
            case "link":
                stack.enter_context(channel(path.with_name("other")))
                path.symlink_to("other")
                wanted = errno.ENOTSOCK
            case "packets":
                stack.enter_context(channel(path, socket.SOCK_SEQPACKET))
                wanted = errno.EPROTOTYPE
            case _:
                stack.enter_context(channel(path))

                def refuse(path: str) -> None:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

                monkeypatch.setattr(_connecting, "_connected", refuse)
                wanted = errno.EACCES
        assert await it.error_of_open() == wanted
        assert await it.error_of_open() == wanted
    assert not it.port.openers


async def test_a_file_system_that_does_not_answer_holds_one_port_and_one_thread(
    it: SocketPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connecting, "_ACCEPTING", 0.1)
    answered, waiting = threading.Event(), []

    def wait(path: str) -> None:
        waiting.append(path)
        answered.wait(10)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(_connecting, "_connected", wait)
    try:
        for _ in range(3):
            assert await it.error_of_open() == errno.ETIMEDOUT
        assert len(waiting) == 1
    finally:
        answered.set()
    await until(lambda: it.line._limiter.borrowed_tokens == 0)
    assert await it.error_of_open() == errno.ENOENT


@pytest.mark.parametrize("late", [True, False])
async def test_a_connection_that_is_made_too_late_is_closed(server: Channel, late: bool) -> None:
    attempt = _connecting._Attempt(str(server.path))
    if late:
        attempt.give_up()
    sock = attempt.make()
    assert (sock.fileno() < 0) == late
    attempt.give_up()
    assert sock.fileno() < 0
    with server.client as client:
        assert client.recv(1) == b""


async def test_a_path_can_be_longer_than_a_sockets_address(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with channel(tmp_path / "agent") as server:
        (tmp_path / "agent").rename(folder / "agent")
        async with trio.open_nursery() as nursery:
            it = SocketPort(folder / "agent", nursery)
            opener, stream = await it.opened_with(server)
            it.port.close(opener)
            await stream.aclose()


async def test_a_hypervisor_that_closes_is_a_hang_up(it: SocketPort, server: Channel) -> None:
    opener, stream = await it.opened_with(server)
    await stream.send_all(b"last words")
    await stream.aclose()
    await until(lambda: not it.port.host_connected)
    assert await it.read() == b"last words"
    assert await it.read() == b""
    assert it.port.answer_poll(opener) & select.POLLHUP
    stream = await server.accept()
    await until(lambda: it.port.host_connected)
    assert it.port.write_nowait(b"again") == 5
    assert await stream.receive_some() == b"again"
    await stream.aclose()
    it.port.close(opener)


@pytest.mark.expect_log("Connection refused; trying again")
async def test_it_is_tried_again_with_growing_pauses_and_at_once_when_the_socket_is_new(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []
    ours, theirs = trio.socket.socketpair()

    async def connect(path: str, limiter: trio.CapacityLimiter) -> trio.socket.SocketType:
        times.append(trio.current_time())
        if len(times) == 1:
            return ours
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    monkeypatch.setattr(_socket_line, "connect", connect)
    async with trio.open_nursery() as nursery:
        it = SocketPort(tmp_path / "agent", nursery)
        opener = await it.open()
        theirs.close()
        await trio.sleep(10)
        pauses = [later - sooner for sooner, later in pairwise(times)]
        assert pauses[:7] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0])
        count = len(times)
        it.line.try_now()
        await trio.testing.wait_all_tasks_blocked()
        assert len(times) == count + 1
        it.port.close(opener)
        await trio.sleep(60)
        assert len(times) == count + 1, "nothing is tried while the port is closed"


async def test_a_hypervisor_that_sends_without_end_is_stopped(
    it: SocketPort, server: Channel
) -> None:
    opener, stream = await it.opened_with(server)
    data = os.urandom(1 << 20)

    async def send() -> None:
        await stream.send_all(data)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await until(lambda: not it.port.wants_data)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert it.port.queued <= 2 * LIMIT
        received = b""
        while some := await it.read(50_000):
            received += some
    assert received == data
    it.port.close(opener)


async def test_a_write_waits_for_a_hypervisor_that_does_not_read(
    it: SocketPort, server: Channel
) -> None:
    opener, stream = await it.opened_with(server)
    sent = it.fill()
    assert not it.port.answer_poll(opener) & select.POLLOUT
    changes: list[Port] = []
    it.port.on_change = changes.append
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.port.write, b"x" * 1000)
        await trio.testing.wait_all_tasks_blocked()
        received = b""
        while len(received) < sent + 1000:
            received += await stream.receive_some()
    assert received.endswith(b"x" * 1000)
    assert changes, "pollers were told of the room"
    assert it.port.answer_poll(opener) & select.POLLOUT
    await stream.aclose()
    it.port.close(opener)


@pytest.mark.parametrize("end", ["close", "remove", "detach"])
async def test_a_write_that_waits_ends_with_the_port(
    it: SocketPort, server: Channel, end: str
) -> None:
    opener, stream = await it.opened_with(server)
    errors: list[int | None] = []

    async def write() -> None:
        try:
            await it.port.write(bytes(100_000))
        except OSError as error:
            errors.append(error.errno)

    it.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        if end == "close":  # the hypervisor closes, and then accepts again
            await stream.aclose()
            stream = await server.accept()
        elif end == "remove":
            it.port.remove()
        else:
            it.port.detach()
            nursery.cancel_scope.cancel()
    assert errors == ([errno.ENODEV] if end == "remove" else [])
    assert it.port.host_connected == (end == "close")
    await stream.aclose()
    it.port.close(opener)


async def test_a_broken_connection_does_not_wake_those_who_want_to_write(
    it: SocketPort, server: Channel
) -> None:
    """It is found to be broken by a write, before what came earlier has been read."""
    opener, stream = await it.opened_with(server)
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    await stream.send_all(bytes(2 * LIMIT))
    await until(lambda: not it.port.wants_data)
    await stream.aclose()
    with pytest.raises(trio.WouldBlock):
        it.port.write_nowait(b"x")
    changes: list[Port] = []
    it.port.on_change = changes.append
    assert not it.port.answer_poll(opener) & select.POLLOUT
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert changes == []
    received = 0
    while some := await it.read():
        received += len(some)
    assert received == 2 * LIMIT
    it.port.close(opener)


async def test_a_port_that_is_removed_lets_the_socket_go(it: SocketPort, server: Channel) -> None:
    opener, stream = await it.opened_with(server)
    it.port.remove()
    assert await stream.receive_some() == b""
    with pytest.raises(OSError, match="No such device"):
        it.port.read_nowait(10)
    it.port.close(opener)
    await stream.aclose()

"""The link over a stream whose other end reads late: what goes first when it does."""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from vconfs.guest.driver import Driver
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.link._sender import Sender
from vconfs.link.link import Link
from vconfs.protocol import v8
from vconfs.protocol.stream import Connection, Frame, Role
from vconfs.streams._socket_addresses import UnixAddress
from vconfs.streams.stream_link import open_link
from vconfs.streams.wire import Wire

PIECE = 100_000


class Owner:
    """The end that uses the link."""

    def __init__(self, link: Link, end: v8.GuestEnd) -> None:
        link.owner = self
        self.sender = Sender(link, end)

    def received(self, queue: int) -> None: ...
    def config_changed(self) -> None: ...
    def lost(self, reason: str) -> None: ...
    def left(self) -> None: ...

    def room(self, queue: int) -> None:
        self.sender.room(queue)


class LatePeer:
    """The host at the other end, which reads when the test says so."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self.connection = Connection(Role.HOST)

    async def read(self, count: int) -> list[str]:
        """Read `count` buffers: "d3" is data of port 3, "c3" a control message of it."""
        seen: list[str] = []
        while len(seen) < count:
            event = self.connection.next_event()
            if event is None:
                self.connection.feed(await self._sock.recv(1 << 16))
            elif isinstance(event, Frame):
                port, control = v8.addressee(event.payload)
                seen.append(("c" if control else "d") + str(port))
        return seen

    async def say_hello(self) -> None:
        config = v8.CONFIG.pack(80, 25, 9)
        await self._sock.send(self.connection.hello(v8.FEATURES, config))


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, LatePeer]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = LatePeer(theirs)
        await peer.say_hello()
        wire, address = Wire(ours.fileno(), ours.fileno()), UnixAddress.parse("/unused")
        async with open_link(wire, address, Role.GUEST, v8.FEATURES) as link:
            yield link, peer
            theirs.close()


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[v8.GuestEnd, Sender, LatePeer]]:
    async with linked() as (link, peer):
        end = v8.GuestEnd(link.features)
        yield end, Owner(link, end).sender, peer


def fill(sender: Sender, port_id: int) -> int:
    """Send data until no more is taken; how many buffers that were."""
    count = 0
    while True:
        try:
            assert sender.send_nowait(port_id, bytes(PIECE)) == PIECE
        except trio.WouldBlock:
            return count
        count += 1


async def test_control_messages_go_before_the_data_of_others_that_waits() -> None:
    async with joined() as (end, sender, peer):
        count = fill(sender, 3)
        assert count > 3
        sender.post(end.throttle(5, True))
        sender.post(end.port_open(7, False))
        seen = await peer.read(count + 2)
        first = seen.index("c5")
        assert seen[first : first + 2] == ["c5", "c7"]
        assert 0 < first < count - 1
        assert seen.count("d3") == count


async def test_a_hang_up_stays_behind_the_data_of_its_port() -> None:
    async with joined() as (end, sender, peer):
        count = fill(sender, 3)
        sender.post(end.port_open(3, False))
        sender.post(end.port_open(3, True))
        assert await peer.read(count + 2) == ["d3"] * count + ["c3"] * 2


async def test_control_messages_are_taken_when_data_is_not() -> None:
    async with joined() as (end, sender, peer):
        fill(sender, 3)
        assert not sender.has_room(4)
        for _ in range(100):
            sender.post(end.throttle(4, True))
        seen = await peer.read(50)
        assert "c4" in seen


async def test_a_file_that_cannot_be_waited_for_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(600_000))
    with path.open("rb") as file:
        wire = Wire(file.fileno(), file.fileno())
        sizes = [len(await wire.receive()) for _ in range(4)]
    assert sum(sizes) == 600_000
    assert sizes[3] == 0


async def test_a_program_that_does_not_wait_is_not_kept_out_by_waiting_ones() -> None:
    manager = PortManager()
    async with linked() as (link, peer), trio.open_nursery() as nursery:
        driver = Driver(manager, link, v8.GuestEnd(link.features))
        driver.start()
        for port_id in (1, 2, 3):
            nursery.start_soon(write_on, manager.ports[port_id])
        port = manager.ports[4]
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()  # the line is full
            assert port.poll() & select.POLLOUT
            with pytest.raises(trio.WouldBlock):
                port.write_nowait(b"key")
            assert port.write_nowait(b"key", nonblock=True) == 3
            assert not port.poll() & select.POLLOUT
            with pytest.raises(trio.WouldBlock):
                port.write_nowait(b"key", nonblock=True)
            told: list[Port] = []
            port.on_change = told.append
            for _ in range(20):
                if "d4" in await peer.read(1):
                    break
            else:
                raise AssertionError("it did not get its turn")
            assert told
        nursery.cancel_scope.cancel()


async def write_on(port: Port) -> None:
    while True:
        await port.write(bytes(PIECE))

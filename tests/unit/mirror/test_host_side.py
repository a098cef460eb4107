"""The host's side of ports as `Port`s, with a guest at the other end of real rings."""

from __future__ import annotations

import errno
import select
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, field

from tests.support.waiting import until
from vconfs.errors import VconfsError
from vconfs.guest.devices import join_embedded
from vconfs.guest.opener import Opener
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.host.host import Host, open_host
from vconfs.host.spec import parse_port
from vconfs.mirror.guests import Guests
from vconfs.mirror.host_guests import HostGuest, open_host_guest


@define
class Ends:
    """Both sides of the ports of one guest."""

    host: Host
    shown: HostGuest
    dialect: str
    guest: PortManager = field(factory=PortManager)

    @property
    def host_side(self) -> Port:
        return self.shown.manager.ports[0]

    @property
    def guest_side(self) -> Port:
        return self.guest.ports[0]

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """Have the guest there while the block runs."""
        async with join_embedded(self.host, self.guest, self.dialect):
            await until(lambda: self.host_side.attached and 0 in self.guest.ports)
            yield


@pytest.fixture(params=["v8", "virtio1"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def ends(
    dialect: str, spec: str = "port=mount", *, joined: bool = True, **options: object
) -> AsyncIterator[Ends]:
    port_options = PortOptions(**options)  # type: ignore[arg-type]
    guests = Guests(lambda guest, port_id, name: port_options)
    with open_host_guest(guests, "web1") as shown:
        async with AsyncExitStack() as stack:
            host = await stack.enter_async_context(open_host([parse_port(spec)], files=shown))
            it = Ends(host, shown, dialect)
            if joined:
                await stack.enter_async_context(it.joined())
            with trio.fail_after(20):
                yield it


def opened(port: Port) -> Opener:
    opener = Opener(1)
    port.open(opener)
    return opener


async def opened_with(it: Ends, data: bytes) -> Opener:
    """Open both sides, and let the guest send; return the opener of the host's side."""
    opened(it.guest_side)
    mine = opened(it.host_side)
    await until(lambda: it.guest_side.host_connected)
    await write_all(it.guest_side, data)
    await until(lambda: it.host_side.queued == len(data))
    return mine


async def read(port: Port, size: int = 1 << 20) -> bytes:
    return b"".join(await port.read(size))


async def write_all(port: Port, data: bytes) -> None:
    while data:
        data = data[await port.write(data) :]


def write_some(port: Port) -> int:
    """Write without waiting; return how much was taken."""
    try:
        return port.write_nowait(bytes(1 << 16), nonblock=True)
    except (trio.WouldBlock, OSError):
        return 0


async def test_a_guest_that_is_stopped_by_hand_is_shown_as_stopped(dialect: str) -> None:
    async with ends(dialect) as it:
        told: list[bool] = []
        it.host_side.on_change = lambda port: told.append(port.guest_throttled)
        for on in (True, False):
            it.host.throttle(0, on)
            assert it.host_side.guest_throttled == on
            assert told[-1] == on


async def test_bytes_go_both_ways_and_each_side_sees_the_other_come_and_go(dialect: str) -> None:
    async with ends(dialect) as it:
        host, guest = it.host_side, it.guest_side
        assert host.name == b"port"
        assert not host.host_connected
        assert not guest.host_connected
        mine, its = opened(host), opened(guest)
        await until(lambda: host.host_connected and guest.host_connected)
        await write_all(host, b"ping")
        assert await read(guest) == b"ping"
        await write_all(guest, b"pong")
        assert await read(host) == b"pong"
        assert (host.counters.bytes_in, host.counters.bytes_out) == (4, 4)
        counters = it.host.ports[0].counters
        assert (counters.bytes_in, counters.bytes_out) == (4, 4)
        host.close(mine)
        await until(lambda: not guest.host_connected)
        assert await read(guest) == b""
        guest.close(its)
        await until(lambda: not host.host_connected)


async def test_the_guests_close_is_an_end_of_file_after_what_it_sent(dialect: str) -> None:
    async with ends(dialect) as it:
        opened(it.host_side)
        for text in (b"first", b"second"):
            its = opened(it.guest_side)
            await until(lambda: it.guest_side.host_connected)
            await write_all(it.guest_side, text)
            it.guest_side.close(its)
        assert await read(it.host_side) == b"first"
        assert await read(it.host_side) == b""
        assert await read(it.host_side) == b"second"
        assert await read(it.host_side) == b""


async def test_what_comes_while_the_file_is_not_open_waits_for_a_reader(dialect: str) -> None:
    async with ends(dialect) as it:
        opened(it.guest_side)
        if dialect == "virtio1":  # its guest waits for a host, so the host comes and goes
            mine = opened(it.host_side)
            await until(lambda: it.guest_side.host_connected)
            await write_all(it.guest_side, b"early")
            await until(lambda: it.host_side.queued == 5)
            it.host_side.close(mine)
        else:
            await write_all(it.guest_side, b"early")
            await until(lambda: it.host_side.queued == 5)
        assert not it.host.ports[0].counters.dropped
        opened(it.host_side)
        assert await read(it.host_side) == b"early"


async def test_a_full_file_stops_the_guest_and_nothing_is_lost(dialect: str) -> None:
    data = bytes(range(256)) * 4000
    async with ends(dialect, "port=mount,host-limit=4K") as it:
        opened(it.host_side)
        opened(it.guest_side)
        await until(lambda: it.guest_side.host_connected)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_all, it.guest_side, data)
            if dialect == "v8":
                await until(lambda: it.guest_side.host_throttled)
                assert it.host_side.guest_throttled
                assert it.host.ports[0].host_throttled
            else:
                await until(lambda: it.host_side.queued >= 4096)
            got = b""
            while len(got) < len(data):
                got += await read(it.host_side)
        assert got == data
        assert not it.host.ports[0].counters.dropped
        assert not it.host_side.guest_throttled


async def test_a_guest_that_wants_no_more_stops_writers_by_the_option(dialect: str) -> None:
    async with ends(dialect, throttle="enospc") as it:
        opened(it.host_side)
        its = opened(it.guest_side)
        await until(lambda: it.host_side.host_connected)
        it.guest_side.set_options(PortOptions(limit=100))
        await write_all(it.host_side, bytes(200))
        if dialect == "v8":
            await until(lambda: it.host_side.host_throttled)
            assert not it.host_side.poll() & select.POLLOUT
            with pytest.raises(OSError, match="No space") as caught:
                it.host_side.write_nowait(b"x")
            assert caught.value.errno == errno.ENOSPC
        await read(it.guest_side)
        await until(lambda: not it.host_side.host_throttled)
        assert it.host_side.poll() & select.POLLOUT
        await write_all(it.host_side, b"x")
        it.guest_side.close(its)


async def test_a_poll_without_room_is_told_of_room(dialect: str) -> None:
    async with ends(dialect) as it:
        changes: list[int] = []

        class Observer:
            def port_changed(self, port: Port) -> None:
                changes.append(port.poll() & select.POLLOUT)

            def port_added(self, port: Port) -> None: ...
            def port_removed(self, port: Port) -> None: ...
            def port_renamed(self, port: Port, old: bytes) -> None: ...

        opened(it.guest_side)
        mine = opened(it.host_side)
        await until(lambda: it.host_side.host_connected)
        it.guest_side.set_options(PortOptions(limit=1))
        sent = 0
        while more := write_some(it.host_side):
            sent += more
        with it.shown.manager.observing(Observer()):
            assert not it.host_side.answer_poll(mine) & select.POLLOUT
            while sent:
                sent -= len(await read(it.guest_side))
            await until(lambda: any(changes))


async def test_a_guest_that_is_lost_hangs_up_and_the_next_one_finds_the_host(dialect: str) -> None:
    async with ends(dialect, joined=False, throttle="enospc") as it:
        mine = opened(it.host_side)
        assert it.shown.guest.connected is False
        with pytest.raises(OSError) as caught:
            it.host_side.write_nowait(b"x")
        assert caught.value.errno == errno.ENOTCONN
        async with it.joined():
            assert (it.shown.guest.connected, it.shown.guest.address) == (True, "embedded")
            opened(it.guest_side)
            await until(lambda: it.host_side.host_connected and it.guest_side.host_connected)
        assert not it.host_side.host_connected
        assert it.shown.guest.connected is False
        it.host_side.close(mine)
        async with it.joined():
            assert not it.host.ports[0].connected
            assert not it.guest_side.host_connected
            opened(it.host_side)
            await until(lambda: it.guest_side.host_connected)


async def test_losses_are_counted_by_both(dialect: str) -> None:
    async with ends(dialect) as it:
        host_port = it.host.ports[0]
        mine = await opened_with(it, b"read unread")
        assert (host_port.queued, host_port.delivered_bytes) == (11, 0)
        assert await read(it.host_side, 5) == b"read "
        assert (host_port.queued, host_port.delivered_bytes) == (6, 5)
        it.host_side.close(mine)
        assert it.host_side.counters.dropped == 6
        assert host_port.counters.dropped == 6
        assert (host_port.queued, host_port.delivered_bytes) == (0, 5)


async def test_a_removed_port_gives_its_readers_the_rest(dialect: str) -> None:
    async with ends(dialect) as it:
        port = it.host_side
        await opened_with(it, b"rest")
        it.host.remove(0)
        assert port.removed
        assert 0 not in it.shown.manager.ports
        assert await read(port) == b"rest"
        with pytest.raises(OSError) as caught:
            await read(port)
        assert caught.value.errno == errno.ENODEV


async def test_a_removal_waits_for_readers_and_says_what_was_lost(
    dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ends(dialect) as it:
        port = it.host_side
        mine = await opened_with(it, b"to be read")
        async with trio.open_nursery() as nursery:
            host_port = it.host.ports[0]
            nursery.start_soon(it.host.remove_when_drained, 0)
            await until(lambda: host_port._ending)
            assert await read(port) == b"to be read"
        assert port.removed
        port.close(mine)
    assert not caplog.messages


async def test_an_ending_refuses_writes_and_delivers_what_readers_take(dialect: str) -> None:
    async with ends(dialect) as it:
        port = it.host_side
        await opened_with(it, b"to be read")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.host.drain)
            await until(lambda: port.ending)
            with pytest.raises(OSError, match="not connected"):
                port.write_nowait(b"x")
            assert await read(port) == b"to be read"


@pytest.mark.expect_log("removed a port: 6 bytes were dropped, not delivered: 6 of port 'port'")
async def test_an_ending_drops_what_has_no_reader_and_counts_it(dialect: str) -> None:
    async with ends(dialect, "port=mount,cache") as it:
        mine = await opened_with(it, b"unread")
        it.host_side.close(mine)
        host_port = it.host.ports[0]
        await it.host.remove_when_drained(0)
        assert host_port.counters.dropped == 6


async def test_a_new_name_and_the_cache_of_the_port(dialect: str) -> None:
    async with ends(dialect) as it:
        it.host.rename(0, b"other")
        it.host.configure(0, cache=True)
        assert it.host_side.name == b"other"
        assert it.host_side.cache
        assert it.shown.manager.by_name(b"other") is it.host_side


@pytest.mark.expect_log("guest web1: vcon0: the guest ignores THROTTLE, the port is reset")
async def test_a_guest_that_ignores_the_request_to_stop_is_cut_off() -> None:
    async with ends("v8", "port=mount,host-limit=1K") as it:
        opened(it.guest_side)
        port = it.host_side
        opened(port)
        await until(lambda: it.guest_side.host_connected)
        await write_all(it.guest_side, bytes(2048))
        await until(lambda: it.guest_side.host_throttled)
        in_flight = it.host.ports[0].line
        assert in_flight is not None
        for _ in range(in_flight.in_flight // 1024 + 2):
            it.host.ports[0].feed(memoryview(bytes(1024)), None)
        assert port.counters.resets == it.host.ports[0].counters.resets == 1
        assert port.queued == 0
        assert it.host.ports[0].counters.dropped == port.counters.dropped > 0


@pytest.mark.expect_log("ignores THROTTLE")
@pytest.mark.parametrize("spec", ["port=mount", "port=unix:{}/sock,cache"])
async def test_a_guest_that_comes_again_and_again_does_not_fill_the_memory(
    spec: str, tmp_path: Path
) -> None:
    """What it sends before it sees that it is to stop is good, but not without an end."""
    async with ends("v8", spec.format(tmp_path), joined=False) as it:
        port = it.host.ports[0]
        most = 0
        for _ in range(30):
            async with join_embedded(it.host, PortManager()):
                await until(lambda: port.attached)
                for _ in range(64):
                    port.feed(memoryview(bytes(1 << 16)), None)
            most = max(most, port.queued)
        assert 60 << 20 < most < 80 << 20
        assert port.counters.dropped > 40 << 20


async def test_a_port_can_be_a_file_only_with_a_mount() -> None:
    with pytest.raises(VconfsError, match="vconfs host --mount DIR"):
        async with open_host([parse_port("port=mount")]):
            pass

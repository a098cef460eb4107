"""Host end and guest end together, over real rings in one process."""

from __future__ import annotations

import errno
import select
from typing import cast

import pytest
import trio
import trio.testing

from vconfs.device._queue_shapes import queue_specs
from vconfs.device.embedded import open_embedded
from vconfs.errors import VconfsError
from vconfs.guest.driver import drive
from vconfs.guest.port import Opener, Port, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.host.host import open_host
from vconfs.host.port import HostPort, HostPortSpec
from vconfs.protocol import v8
from vconfs.protocol.events import Buffer
from vconfs.testing import Puppet, open_ends


def spec(name: bytes = b"port", puppet: Puppet | None = None, **options: object) -> HostPortSpec:
    return HostPortSpec(name, puppet or Puppet(), **options)  # type: ignore[arg-type]


def taken(pieces: list[Buffer]) -> bytes:
    return b"".join(pieces)


def read_all(port: Port) -> bytes:
    data = b""
    while True:
        try:
            piece = taken(port.read_nowait(1 << 20))
        except trio.WouldBlock:
            return data
        if not piece:
            return data
        data += piece


async def test_ports_come_with_their_names_and_kinds() -> None:
    specs = [spec(b"con", console=True), spec(b"org.example.0"), spec(b"", cache=True, limit=2)]
    async with open_ends(specs) as ends:
        assert [ends.ports[port_id].name for port_id in range(3)] == [b"con", b"org.example.0", b""]
        assert [ends.ports[port_id].console for port_id in range(3)] == [True, False, False]
        assert all(port.host_connected for port in ends.ports.values())
        assert ends.ports[2].cache
        assert ends.ports[2].limit == 2 << 20
        assert ends.manager.ignored == 0
        assert ends.driver.reason == ""


async def test_data_goes_both_ways() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)]) as ends:
        port = ends.ports[0]
        assert port.write_nowait(b"to the host") == 11
        assert await puppet.port.receive() == b"to the host"
        await puppet.port.send(b"to the guest")
        assert taken(port.read_nowait(100)) == b"to the guest"


@pytest.mark.parametrize("size", [1, 4095, 65535, 65536, 65537, 1 << 20])
async def test_large_writes_arrive_whole(size: int) -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet, host_limit=1 << 22)]) as ends:
        port = ends.ports[0]
        data = bytes(i * 7 % 251 for i in range(size))
        assert port.write_nowait(data) == size
        got = b""
        while len(got) < size:
            got += await puppet.port.receive()
        assert got == data
        async with trio.open_nursery() as nursery:
            nursery.start_soon(puppet.port.send, data)
            back = b""
            while len(back) < size:
                back += taken(await port.read(1 << 20))
        assert back == data


async def test_open_and_close_are_announced() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)]) as ends:
        assert not puppet.port.guest_connected
        opener = Opener(1)
        ends.ports[0].open(opener)
        assert puppet.port.guest_connected
        ends.ports[0].close(opener)
        assert not puppet.port.guest_connected
        puppet.port.disconnect()
        assert not ends.ports[0].host_connected
        puppet.port.connect()
        assert ends.ports[0].host_connected


# --- throttling ---------------------------------------------------------------------------


async def test_a_host_without_a_reader_throttles_the_guest_and_resumes_below_half() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet, host_limit=1000)]) as ends:
        port = ends.ports[0]
        port.write_nowait(bytes(999))
        assert not port.host_throttled
        port.write_nowait(b"x")
        assert port.host_throttled
        with pytest.raises(OSError) as caught:
            port.write_nowait(b"x", nonblock=True)
        assert caught.value.errno == errno.ENOSPC
        await puppet.port.receive(499)
        assert port.host_throttled
        await puppet.port.receive(1)
        assert not port.host_throttled
        assert port.write_nowait(b"y") == 1


async def test_opens_and_closes_of_the_guest_count_towards_the_limit() -> None:
    puppet = Puppet()
    puppet.keeps_sessions = True
    async with open_ends([spec(puppet=puppet, host_limit=100_000)]) as ends:
        port, cycles = ends.ports[0], 0
        while not port.host_throttled:
            opener = Opener(1)
            port.open(opener)
            port.write_nowait(b"x")
            port.close(opener)
            cycles += 1
            await trio.testing.wait_all_tasks_blocked()  # the host does so much in one turn
        assert 57 * cycles - 100_000 in range(200)  # each is a byte and a mark
        assert cast(HostPort, puppet.port).queued == cycles
        while port.host_throttled:
            assert await puppet.port.receive() == b"x"
            assert await puppet.port.receive() == b""
            cycles -= 1
        assert 57 * cycles - 50_000 in range(-200, 200)


async def test_small_messages_count_with_what_they_cost() -> None:
    puppet = Puppet()
    puppet.keeps_boundaries = True
    async with open_ends([spec(puppet=puppet, host_limit=100_000)]) as ends:
        port, messages = ends.ports[0], 0
        while not port.host_throttled:
            port.write_nowait(b"x")
            messages += 1
            await trio.testing.wait_all_tasks_blocked()
        assert 65 * messages - 100_000 in range(65)
        assert cast(HostPort, puppet.port).queued == messages


async def test_a_full_port_that_caches_loses_nothing_when_its_host_comes_and_goes() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet, host_limit=1000, cache=True)]) as ends:
        port, host_port = ends.ports[0], cast(HostPort, puppet.port)
        port.write_nowait(bytes(1000))
        for change in (puppet.port.disconnect, puppet.port.connect, puppet.port.hang_up):
            change()
            assert port.host_throttled
            with pytest.raises(OSError, match="No space"):
                port.write_nowait(b"x", nonblock=True)
        assert len(await puppet.port.receive()) == 1000
        assert not port.host_throttled
        assert host_port.counters.dropped == 0


async def test_a_full_port_without_a_cache_is_let_go_by_a_hang_up() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet, host_limit=1000)]) as ends:
        ends.ports[0].write_nowait(bytes(1000))
        puppet.port.disconnect()
        assert not ends.ports[0].host_throttled


async def test_a_guest_without_a_reader_throttles_the_host() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)], PortOptions(limit=100_000)) as ends:
        port = ends.ports[0]
        sent = trio.Event()

        async def send() -> None:
            await puppet.port.send(bytes(300_000))
            sent.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert not sent.is_set() or port.queued == 300_000
            host_port = cast(HostPort, puppet.port)
            assert host_port.guest_throttled
            got = len(read_all(port))
            while got < 300_000:
                got += len(taken(await port.read(1 << 20)))
        assert not host_port.guest_throttled


async def test_throttling_one_port_leaves_the_others_alone() -> None:
    """Requirement: one blocked channel must not block the others."""
    stuck, free = Puppet(), Puppet()
    async with open_ends([spec(b"stuck", stuck, host_limit=10), spec(b"free", free)]) as ends:
        ends.ports[0].write_nowait(bytes(100))
        assert ends.ports[0].host_throttled
        for _ in range(1000):
            assert ends.ports[1].write_nowait(b"x" * 5000) == 5000
            got = 0
            while got < 5000:
                got += len(await free.port.receive())
            assert free.port.send_nowait(b"back") == 4
            assert taken(ends.ports[1].read_nowait(10)) == b"back"


@pytest.mark.expect_log("ignores THROTTLE")
async def test_a_guest_that_ignores_throttle_loses_its_data_and_no_memory() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet, host_limit=1000)]) as ends:
        port, host_port = ends.ports[0], cast(HostPort, puppet.port)
        bound = 1000 + ends.host.guest.in_flight  # type: ignore[union-attr]
        for _ in range(200):
            ends.driver.send_nowait(0, bytes(100_000))  # below the port, which would refuse
            await trio.lowlevel.checkpoint()  # it is too much for one turn
            assert host_port.queued <= bound + 100_000
        assert host_port.counters.resets > 0
        assert host_port.counters.dropped > 0
        assert not port.host_throttled or host_port.queued > 500


async def test_guest_data_for_a_host_that_is_not_there_is_dropped_and_counted() -> None:
    puppet = Puppet(connected=False)
    async with open_ends([spec(puppet=puppet)]) as ends:
        ends.ports[0].write_nowait(b"nobody hears")
        assert cast(HostPort, puppet.port).counters.dropped == 12
        puppet.port.connect()
        ends.ports[0].write_nowait(b"now")
        assert await puppet.port.receive() == b"now"


async def test_guest_data_for_a_host_that_is_not_there_is_kept_by_a_caching_port() -> None:
    puppet = Puppet(connected=False)
    async with open_ends([spec(puppet=puppet, cache=True)]) as ends:
        ends.ports[0].write_nowait(b"kept")
        puppet.port.connect()
        assert await puppet.port.receive() == b"kept"


# --- hot-plug -----------------------------------------------------------------------------


async def test_ports_are_added_renamed_and_removed_at_run_time() -> None:
    async with open_ends([spec(b"first")]) as ends:
        late = await ends.host.add(spec(b"late"))
        assert late.id == 1
        assert ends.ports[1].name == b"late"
        assert ends.ports[1].host_connected
        far = await ends.host.add(spec(b"far", id=9))
        assert far.id == 9
        assert sorted(ends.ports) == [0, 1, 9]  # the gaps between are no ports
        ends.host.rename(1, b"other")
        assert ends.ports[1].name == b"other"
        ends.host.rename(1, b"")
        assert ends.ports[1].name == b""
        gone = ends.ports[1]
        ends.host.remove(1)
        assert gone.removed
        assert sorted(ends.ports) == [0, 9]
        again = await ends.host.add(spec(b"again"))
        assert again.id == 1
        assert ends.ports[1].name == b"again"
        assert not ends.ports[1].removed
        ends.host.remove(9)
        assert sorted(ends.ports) == [0, 1]


async def test_settings_change_at_run_time() -> None:
    async with open_ends([spec()]) as ends:
        port = ends.ports[0]
        ends.host.configure(0, cache=True, limit=3)
        assert (port.cache, port.limit) == (True, 3 << 20)
        ends.host.configure(0, cache=False)
        assert not port.cache
        ends.host.resize(0, 132, 43)
        assert port.size == (132, 43)


async def test_adding_what_cannot_be_says_why_and_leaves_nothing() -> None:
    class Broken(Puppet):
        async def run(self, port: object, task_status: object = None) -> None:
            raise VconfsError("the socket is on fire")

    async with open_ends([spec(b"first")]) as ends:
        for wrong, message in (
            (spec(id=0), "port id 0 is taken by 'first'"),
            (spec(id=40000), "port id 40000 cannot be: ids are 0 to 32767"),
            (spec(bytes(5000)), "a port name has at most 4080 bytes, not 5000"),
            (spec(puppet=Broken()), "the socket is on fire"),
        ):
            with pytest.raises(VconfsError, match=message):
                await ends.host.add(wrong)
        with pytest.raises(VconfsError, match="there is no port 7"):
            ends.host.remove(7)
        with pytest.raises(VconfsError, match="up to 65535 columns and rows, not 70000 by 1"):
            ends.host.resize(0, 70000, 1)
        second = await ends.host.add(spec(b"second"))
        with pytest.raises(VconfsError, match="port 1 is not a console: only consoles have a siz"):
            ends.host.resize(second.id, 80, 25)
        ends.host.remove(second.id)
        assert ends.host.size == (0, 0)
        assert sorted(ends.host.ports) == [0]
        assert sorted(ends.ports) == [0]


async def test_a_host_that_cannot_start_raises_its_error_as_it_is() -> None:
    with pytest.raises(VconfsError, match="port id 0 is taken by 'a'"):
        async with open_host([spec(b"a", id=0), spec(b"b", id=0)]):
            pass


async def test_a_device_that_goes_leaves_hung_up_ports_and_comes_back_to_them() -> None:
    puppet = Puppet()
    async with open_ends([spec(b"name", puppet)]) as ends:
        port = ends.ports[0]
        port.open(Opener(1))
        await puppet.port.send(b"last words")
        ends.driver.stop("unplugged")
        assert not port.host_connected
        assert taken(port.read_nowait(100)) == b"last words"
        assert port.read_nowait(100) == []
        with pytest.raises(OSError) as caught:
            port.write_nowait(b"x", nonblock=True)
        assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
async def test_a_new_connection_tells_what_is_open_and_full_already(dialect: str) -> None:
    puppet = Puppet()
    manager = PortManager(lambda port_id: PortOptions(limit=100))
    async with open_host([spec(puppet=puppet)]) as host:
        async with drive(manager, open_embedded(host, dialect)):
            manager.ports[0].open(Opener(1))
            await puppet.port.send(bytes(100))
        assert not puppet.port.guest_connected
        async with drive(manager, open_embedded(host, dialect)):
            assert puppet.port.guest_connected
            assert cast(HostPort, puppet.port).guest_throttled == (dialect == "v8")
            assert host.guest is not None


async def test_a_message_that_its_guest_did_not_finish_is_not_joined_to_the_next_ones() -> None:
    class Packets(Puppet):
        keeps_boundaries = True

    puppet, manager = Packets(), PortManager()
    async with open_host([spec(puppet=puppet)]) as host:
        async with drive(manager, open_embedded(host)) as driver:
            link = driver._link
            link.send(1, v8.HEADER.pack(0, 0, 100) + b"the first half", b"")
            link.flush(1)
        assert puppet.port.counters.dropped == len(b"the first half")
        async with drive(manager, open_embedded(host)):
            assert manager.ports[0].write_nowait(b"whole") == 5
            assert await puppet.port.receive_message() == b"whole"


@pytest.mark.parametrize("private", [True, False])
async def test_write_buffers_that_others_can_read_are_zeroed_when_the_host_has_used_them(
    private: bool,
) -> None:
    manager, specs = PortManager(), None if private else queue_specs(2)
    async with open_host([spec()]) as host:
        async with drive(manager, open_embedded(host, specs=specs)) as driver:
            manager.ports[0].write_nowait(b"secret" * 1000)
            memory = bytes(driver._link._send[1].memory)  # type: ignore[attr-defined]
            assert (b"secret" in memory) == private


@pytest.mark.parametrize(("size", "refused"), [(1 << 20, True), (1_000_003, False)])
async def test_a_short_write_is_followed_by_a_report_of_room(size: int, refused: bool) -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)], dialect="virtio1") as ends:
        port = ends.ports[0]
        chunk = bytes(size)
        try:
            while port.write_nowait(chunk) == size:
                pass
        except trio.WouldBlock:
            assert refused
        told: list[Port] = []
        port.on_change = told.append
        await puppet.port.receive(1 << 20)
        assert told == [port]
        assert port.poll() & select.POLLOUT


async def test_a_waiter_is_woken_once_for_buffers_that_come_together() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)], dialect="virtio1") as ends:
        port = ends.ports[0]
        port.open(Opener(1))
        told: list[int] = []
        port.on_change = lambda port: told.append(port.queued)
        assert puppet.port.send_nowait(bytes(600_000)) == 600_000  # three buffers
        assert told == [600_000]


LARGE = bytes(range(256)) * 1024


async def test_unread_large_buffers_stop_no_other_port() -> None:
    slow, quick = Puppet(), Puppet()
    async with open_ends([spec(b"slow", slow), spec(b"quick", quick)]) as ends:
        port = ends.ports[0]
        port.open(Opener(1))
        sent = 0
        while (step := slow.port.send_nowait(LARGE)) > 0:
            sent += step
        assert port.guest_throttled
        assert port.queued == sent
        for _ in range(50):
            assert quick.port.send_nowait(LARGE) == len(LARGE)
            assert read_all(ends.ports[1]) == LARGE
        assert read_all(port) == LARGE * (sent // len(LARGE))


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
async def test_large_buffers_outlive_their_device_unchanged(dialect: str) -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)], dialect=dialect) as ends:
        port = ends.ports[0]
        port.open(Opener(1))
        assert puppet.port.send_nowait(LARGE) == len(LARGE)
        first = taken(port.read_nowait(1000))
        ends.driver.stop()
        assert first + read_all(port) == LARGE


async def test_large_buffers_that_were_dropped_at_a_close_are_used_again() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)]) as ends:
        port = ends.ports[0]
        for _ in range(50):
            opener = Opener(1)
            port.open(opener)
            assert puppet.port.send_nowait(LARGE) == len(LARGE)
            assert taken(port.read_nowait(1000)) == LARGE[:1000]
            port.close(opener)
        assert port.counters.dropped == 50 * (len(LARGE) - 1000)


# --- held back by hand --------------------------------------------------------------------


async def test_throttling_by_hand_and_by_a_full_queue_are_independent() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet, host_limit=1000)]) as ends:
        port, host_port = ends.ports[0], cast(HostPort, puppet.port)
        port.write_nowait(bytes(1000))
        ends.host.throttle(0, True)
        await puppet.port.receive(600)
        assert port.host_throttled  # below half, but held
        ends.host.throttle(0, False)
        assert not port.host_throttled
        port.write_nowait(bytes(600))
        ends.host.throttle(0, True)
        ends.host.throttle(0, False)
        assert port.host_throttled  # it is full by itself
        await puppet.port.receive(500)
        assert not port.host_throttled
        ends.host.throttle(0, True)
        ends.host.throttle(0, True)
        await puppet.port.receive(500)
        assert port.host_throttled
        assert host_port.counters.resets == 0
        ends.host.throttle(0, False)
        assert port.write_nowait(b"x") == 1


async def test_a_port_throttled_by_hand_stays_throttled_over_a_hang_up() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)]) as ends:
        ends.host.throttle(0, True)
        puppet.port.disconnect()
        puppet.port.connect()
        assert ends.ports[0].host_throttled
        ends.host.throttle(0, False)
        assert not ends.ports[0].host_throttled


async def test_data_sent_before_a_throttle_still_reaches_the_chardev() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)]) as ends:
        ends.ports[0].write_nowait(b"before")
        ends.host.throttle(0, True)
        assert await puppet.port.receive() == b"before"
        await puppet.port.send(b"the other way goes on")
        assert read_all(ends.ports[0]) == b"the other way goes on"


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
async def test_a_port_throttled_by_hand_stays_throttled_for_the_next_guest(dialect: str) -> None:
    puppet = Puppet()
    manager = PortManager(lambda port_id: PortOptions())
    async with open_host([spec(puppet=puppet)]) as host:
        host.throttle(0, True)
        async with drive(manager, open_embedded(host, dialect)):
            if dialect == "v8":
                assert manager.ports[0].host_throttled
            else:
                manager.ports[0].write_nowait(b"x")
                assert cast(HostPort, puppet.port).queued == 0
            host.throttle(0, False)
            if dialect == "v8":
                manager.ports[0].write_nowait(b"x")
            assert await puppet.port.receive() == b"x"


async def test_a_hang_up_behind_data_that_is_held_back_waits_for_it() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet)], dialect="virtio1") as ends:
        opener = Opener(1)
        ends.ports[0].open(opener)
        ends.host.throttle(0, True)
        ends.ports[0].write_nowait(b"last words")
        ends.ports[0].close(opener)
        assert puppet.port.guest_connected
        ends.host.throttle(0, False)
        assert await puppet.port.receive() == b"last words"
        assert not puppet.port.guest_connected


# --- ids that the guest cannot have -------------------------------------------------------


@pytest.mark.expect_log("have the same name")
async def test_an_id_too_large_for_the_guest_that_is_there_is_refused() -> None:
    async with open_ends([spec()], dialect="virtio1") as ends:
        with pytest.raises(
            VconfsError, match="id 31 is too large for the guest: its ids end at 30"
        ):
            await ends.host.add(spec(id=31))
        await ends.host.add(spec(id=30))
        assert sorted(ends.ports) == sorted(ends.host.ports) == [0, 30]


async def test_a_guest_that_cannot_have_every_port_gets_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_ends([spec(), spec(id=31), spec(id=40)], dialect="virtio1") as ends:
        assert sorted(ends.ports) == [0]
    assert caplog.messages == ["guest: its port ids end at 30, it cannot see 31, 40"]


async def test_removing_ports_between_gaps_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_ends([spec(b"a"), spec(b"b", id=4), spec(b"c", id=9)]) as ends:
        ends.host.remove(4)
        assert sorted(ends.ports) == [0, 9]
        ends.host.remove(9)
        assert sorted(ends.ports) == [0]
        await ends.host.add(spec(b"d", id=6))
        assert sorted(ends.ports) == [0, 6]
        assert ends.manager.ignored == 0
    assert caplog.messages == []


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
async def test_data_that_was_held_back_is_not_for_the_next_port_of_that_id(dialect: str) -> None:
    old, new = Puppet(), Puppet()
    async with open_ends([spec(), spec(b"old", old)], dialect=dialect) as ends:
        guest_port, opener = ends.ports[1], Opener(1)
        guest_port.open(opener)
        ends.host.throttle(1, True)
        if dialect == "virtio1":
            guest_port.write_nowait(b"for the old one")
        guest_port.close(opener)
        ends.host.remove(1)
        await ends.host.add(spec(b"new", new, id=1))
        ends.ports[1].open(Opener(1))
        assert new.port.guest_connected
        ends.ports[1].write_nowait(b"for the new one")
        assert await new.port.receive() == b"for the new one"
        assert new.port.guest_connected

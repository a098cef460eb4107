"""Throttling where one end looks at its queues late: nothing is lost, and memory is bounded."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar, cast

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.unit.ends.test_ends import spec
from vconfs.device._slots import QueueSpec
from vconfs.device.embedded import Doorbell, open_embedded
from vconfs.guest.driver import Driver, drive
from vconfs.guest.port import Opener, Port, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.host._attached_guest import AttachedGuest
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPort
from vconfs.protocol import v8
from vconfs.protocol.stream import Role
from vconfs.streams._socket_addresses import UnixAddress
from vconfs.streams.stream_link import open_link
from vconfs.streams.wire import Wire
from vconfs.system.tasks import open_background
from vconfs.testing import Puppet

SLOT, SLOTS = 256, 4
SPECS = {0: QueueSpec(SLOTS, SLOT), 1: QueueSpec(SLOTS, SLOT)}
#: In pieces of 495 bytes a stream with the smallest window has no credit left over before these.
HOST_LIMIT, GUEST_LIMIT = 991, 1486
#: The most that a queue holds, of either direction.
QUEUE = SLOT * SLOTS


class LateDoorbell(Doorbell):
    """Rings only when the test says so."""

    def ring(self, queue: int) -> None:
        self._rung[queue] = None

    def let(self) -> None:
        """Have the end that was rung look at its queues."""
        if not self._answering:
            self._answer_some()


class Pair:
    """Two ports of both ends, and a count of every byte."""

    #: The most bytes that can be on their way to one end.
    on_the_way = 2 * QUEUE

    def __init__(self, host: Host, driver: Driver, puppets: list[Puppet], ports: list[Port]):
        self.host, self.driver = host, driver
        self.guest = ports
        self.puppets = [cast(HostPort, puppet.port) for puppet in puppets]
        self.ports: list[Port | HostPort] = [*self.guest, *self.puppets]
        self.written: list[int] = [0, 0]
        self.sent: list[int] = [0, 0]
        self.read: list[int] = [0, 0]
        self.received: list[int] = [0, 0]
        for port in ports:
            port.open(Opener(1))

    def write(self, port_id: int, size: int) -> int:
        """Send from the guest, as far as it goes."""
        taken = 0
        with suppress(OSError, trio.WouldBlock):
            taken = self.guest[port_id].write_nowait(coded(self.written[port_id], size))
        self.written[port_id] += taken
        return taken

    def send(self, port_id: int, size: int) -> int:
        """Send from the host, as far as it goes."""
        taken = self.puppets[port_id].send_nowait(coded(self.sent[port_id], size))
        self.sent[port_id] += taken
        return taken

    def read_some(self, port_id: int, size: int) -> None:
        with suppress(trio.WouldBlock):
            data = b"".join(self.guest[port_id].read_nowait(size))
            assert data == coded(self.read[port_id], len(data))
            self.read[port_id] += len(data)

    async def receive(self, port_id: int, size: int) -> None:
        if self.puppets[port_id].queued:
            data = await self.puppets[port_id].receive(size)
            assert data == coded(self.received[port_id], len(data))
            self.puppets[port_id].delivered(len(data))
            self.received[port_id] += len(data)

    def check(self) -> None:
        for port in self.ports:
            assert port.counters.resets == port.counters.dropped == 0
            assert port.queued <= max(HOST_LIMIT, GUEST_LIMIT) + self.on_the_way

    async def drain(self, look: Callable[[], None]) -> None:
        """Let all look and take until everything has come."""
        with trio.fail_after(10):
            while (self.received, self.read) != (self.written, self.sent):
                look()
                for port_id in (0, 1):
                    self.read_some(port_id, 1 << 20)
                    await self.receive(port_id, 1 << 20)
                await trio.testing.wait_all_tasks_blocked()
                self.check()


P = TypeVar("P", bound=Pair)


def coded(start: int, size: int) -> bytes:
    """Bytes that tell their place."""
    return bytes((start + i) * 7 % 251 for i in range(size))


@asynccontextmanager
async def late_ends(
    make: Callable[[Host, Driver, list[Puppet], list[Port]], P],
) -> AsyncIterator[tuple[P, LateDoorbell, LateDoorbell]]:
    """Both ends over small rings, and the doorbells of the host and of the guest."""
    puppets = [Puppet(), Puppet()]
    kicks, calls = LateDoorbell(), LateDoorbell()
    manager = PortManager(lambda port_id: PortOptions(limit=GUEST_LIMIT))
    specs = [spec(b"%d" % i, puppet, host_limit=HOST_LIMIT) for i, puppet in enumerate(puppets)]
    async with (
        open_host(specs) as host,
        drive(manager, open_embedded(host, specs=SPECS, doorbells=(kicks, calls))) as driver,
    ):
        for _ in range(8):
            kicks.let()
            calls.let()
        yield make(host, driver, puppets, [manager.ports[0], manager.ports[1]]), kicks, calls


async def test_a_guest_that_sees_throttle_late_loses_nothing() -> None:
    async with late_ends(Pair) as (pair, kicks, _):
        for _ in range(100):
            pair.write(0, 600)
            kicks.let()
            await trio.testing.wait_all_tasks_blocked()
            pair.check()
        assert pair.puppets[0].host_throttled
        assert not pair.guest[0].host_throttled
        await pair.drain(lambda: look(pair))


async def test_a_host_that_sees_throttle_late_loses_nothing() -> None:
    async with late_ends(Pair) as (pair, _, calls):
        for _ in range(100):
            pair.send(0, 600)
            calls.let()
            await trio.testing.wait_all_tasks_blocked()
            pair.check()
        assert pair.guest[0].guest_throttled
        assert not pair.puppets[0].guest_throttled
        await pair.drain(lambda: look(pair))


async def test_two_ends_that_ask_each_other_to_stop_go_on() -> None:
    """Each asks when all buffers of both are full of data, which both withhold."""
    async with late_ends(Pair) as (pair, _, _):
        await bring_to_the_brim(pair, lambda: look(pair))
        while pair.write(0, 5000) or pair.send(0, 5000):
            pass
        look(pair)
        await trio.testing.wait_all_tasks_blocked()
        look(pair)
        assert pair.guest[0].host_throttled
        assert pair.puppets[0].guest_throttled
        await pair.drain(lambda: look(pair))


async def bring_to_the_brim(pair: Pair, look: Callable[[], None]) -> None:
    """Have one byte less in both queues of port 0 than makes it ask the other end to stop."""
    while (wanted := HOST_LIMIT - 1 - pair.written[0]) | (GUEST_LIMIT - 1 - pair.sent[0]):
        pair.write(0, min(wanted, 495))
        pair.send(0, min(GUEST_LIMIT - 1 - pair.sent[0], 495))
        look()
        await trio.testing.wait_all_tasks_blocked()
    assert (pair.puppets[0].queued, pair.guest[0].queued) == (HOST_LIMIT - 1, GUEST_LIMIT - 1)


def look(pair: Pair) -> None:
    """Have both ends look at their queues until nothing rings any more."""
    driver_link: Any = pair.driver._link
    device_link: Any = pair.host.guest._link  # type: ignore[union-attr]
    for _ in range(50):
        device_link._call.__self__.let()
        driver_link._kick.__self__.let()


async def test_other_ports_continue_when_the_guest_has_seen_throttle() -> None:
    async with late_ends(Pair) as (pair, kicks, _):
        while not pair.puppets[0].host_throttled:
            assert pair.write(0, 600)
            kicks.let()
        look(pair)
        await trio.testing.wait_all_tasks_blocked()
        assert pair.guest[0].host_throttled
        for _ in range(100):
            assert pair.write(1, 600)
            kicks.let()
            await trio.testing.wait_all_tasks_blocked()
            await pair.receive(1, 1 << 20)
        assert pair.puppets[0].queued >= HOST_LIMIT


async def test_a_guest_that_never_sees_throttle_stops_only_itself() -> None:
    async with late_ends(Pair) as (pair, kicks, _):
        taken: list[int] = []
        while True:  # below the port, which would refuse
            kicks.let()
            await trio.testing.wait_all_tasks_blocked()
            try:
                taken.append(pair.driver.send_nowait(0, bytes(200)))
            except trio.WouldBlock:
                break
        assert pair.puppets[0].queued == sum(taken) <= HOST_LIMIT + QUEUE
        await pair.puppets[0].receive(1 << 20)
        assert pair.puppets[0].counters.resets == 0


@pytest.mark.expect_log("ignores THROTTLE")
async def test_a_guest_that_sees_throttle_and_goes_on_is_reset() -> None:
    async with late_ends(Pair) as (pair, _, _):
        host_port = pair.puppets[0]
        bound = HOST_LIMIT + 2 * QUEUE + pair.host.guest.in_flight  # type: ignore[union-attr]
        for _ in range(20_000):
            with suppress(trio.WouldBlock):
                pair.driver.send_nowait(0, bytes(200))
            look(pair)
            assert host_port.queued <= bound
            if host_port.counters.resets:
                break
            await trio.testing.wait_all_tasks_blocked()
        assert host_port.counters.resets == 1
        assert host_port.counters.dropped > HOST_LIMIT


class Late(Protocol):
    """What an end waits for before it looks."""

    def let(self) -> None: ...


async def take_step(
    pair: Pair, host: Late, guest: Late, what: str, port_id: int, size: int
) -> None:
    """Have an end look at what has come, or do something with a port."""
    if what in ("kick", "call"):
        (host if what == "kick" else guest).let()
    elif what == "receive":
        await pair.receive(port_id, size)
    else:
        getattr(pair, what)(port_id, size)
    await trio.testing.wait_all_tasks_blocked()


SIZES = st.integers(1, 3000)
STEPS = st.lists(
    st.one_of(
        *(
            st.tuples(st.just(what), st.integers(0, 1), SIZES)
            for what in ("write", "send", "read_some", "receive")
        ),
        *(st.tuples(st.just(what), st.just(0), st.just(0)) for what in ("kick", "call")),
    ),
    max_size=80,
)


@settings(max_examples=examples(30))
@given(steps=STEPS)
async def test_no_order_of_seeing_throttle_loses_a_byte_or_stops_both_ends(
    steps: list[tuple[str, int, int]],
) -> None:
    async with late_ends(Pair) as (pair, kicks, calls):
        for what, port_id, size in steps:
            await take_step(pair, kicks, calls, what, port_id, size)
            pair.check()
        await pair.drain(lambda: look(pair))


@settings(max_examples=examples(30))
@given(steps=STEPS)
async def test_an_end_in_the_middle_accounts_for_every_byte(
    steps: list[tuple[str, int, int]],
) -> None:
    """Accepted is delivered, still queued, or counted as dropped, by port."""
    async with late_ends(Pair) as (pair, kicks, calls):
        for what, port_id, size in steps:
            await take_step(pair, kicks, calls, what, port_id, size)
        ports = list(zip(pair.guest, pair.puppets, strict=True))
    for port_id, (guest, host) in enumerate(ports):
        accepted = pair.written[port_id] + pair.sent[port_id]
        delivered = pair.read[port_id] + pair.received[port_id]
        kept = guest.queued + host.queued
        dropped = guest.counters.dropped + host.counters.dropped
        assert accepted == delivered + kept + dropped


# --- over a stream ------------------------------------------------------------------------


class LateWire(Wire):
    """A wire of a socket whose end reads only when the test says so, and little at a time."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.fileno(), sock.fileno())
        self._sock = sock
        self._may_read = trio.Semaphore(0)
        self.eager = True

    async def receive(self) -> bytes:
        if not self.eager:
            await self._may_read.acquire()
        await trio.lowlevel.wait_readable(self._sock)
        return self._sock.recv(1 << 18 if self.eager else 300)

    def let(self) -> None:
        """Have this end read once."""
        self._may_read.release()


def read_on(*wires: LateWire) -> None:
    """Have these ends read, and go on reading."""
    for wire in wires:
        wire.eager = True
        wire.let()


@asynccontextmanager
async def late_streams(window: int) -> AsyncIterator[tuple[Pair, LateWire, LateWire]]:
    """Both ends over a stream, and the wires of the host and of the guest."""
    puppets = [Puppet(), Puppet()]
    manager = PortManager(lambda port_id: PortOptions(limit=GUEST_LIMIT))
    specs = [spec(b"%d" % i, puppet, host_limit=HOST_LIMIT) for i, puppet in enumerate(puppets)]
    address = UnixAddress.parse(f"/unused,window={window}")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wires = LateWire(ours), LateWire(theirs)
        config = v8.CONFIG.pack(0, 0, 2)
        guests: list[AttachedGuest] = []

        async def serve() -> None:
            async with open_link(wires[0], address, Role.HOST, v8.FEATURES, config) as link:
                guest = host.attach(link, v8.HostEnd(link.features), lambda: None)
                guests.append(guest)
                guest.start()
                await trio.sleep_forever()

        async with open_host(specs) as host, open_background() as nursery:
            nursery.start_soon(serve)
            async with open_link(wires[1], address, Role.GUEST, v8.FEATURES) as link:
                driver = Driver(manager, link, v8.GuestEnd(link.features))
                driver.start()
                with trio.fail_after(5):
                    while len(manager.ports) < 2 or not manager.ports[1].host_connected:
                        await trio.testing.wait_all_tasks_blocked()
                        await trio.sleep(0)
                pair = Pair(host, driver, puppets, [manager.ports[0], manager.ports[1]])
                pair.on_the_way = 2 * window
                yield pair, *wires
                driver.stop()
                ours.shutdown(socket.SHUT_WR)  # the guest end has nothing to wait for


@pytest.mark.parametrize("window", [1024, 4096])
@pytest.mark.expect_log("guest lost")
async def test_two_ends_of_a_stream_that_ask_each_other_to_stop_go_on(window: int) -> None:
    async with late_streams(window) as (pair, host_wire, guest_wire):
        await bring_to_the_brim(pair, lambda: None)
        host_wire.eager = guest_wire.eager = False
        await trio.testing.wait_all_tasks_blocked()
        while any([pair.write(0, 5000), pair.send(0, 5000), pair.write(1, 1), pair.send(1, 1)]):
            await trio.testing.wait_all_tasks_blocked()

        await pair.drain(lambda: read_on(host_wire, guest_wire))


@settings(max_examples=examples(8))
@given(window=st.sampled_from([1024, 4096]), steps=STEPS)
@example(
    window=4096, steps=[("send", 0, 1363), ("write", 0, 1344), ("send", 0, 306), ("send", 0, 2245)]
)
@pytest.mark.limit(30)
@pytest.mark.expect_log("guest lost")
async def test_no_order_of_reading_a_stream_loses_a_byte_or_stops_both_ends(
    window: int, steps: list[tuple[str, int, int]]
) -> None:
    async with late_streams(window) as (pair, host_wire, guest_wire):
        host_wire.eager = guest_wire.eager = False
        for what, port_id, size in steps:
            await take_step(pair, host_wire, guest_wire, what, port_id, size)
            pair.check()

        await pair.drain(lambda: read_on(host_wire, guest_wire))

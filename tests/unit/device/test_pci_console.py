"""The PCI driver with a whole console of our own behind the registers."""

from __future__ import annotations

import errno
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.unit.device.fake_console import FakeConsole, open_console
from tests.unit.ends.test_ends import spec, taken
from vconfs.device.pci import open_pci
from vconfs.guest.driver import Driver, drive
from vconfs.guest.port import Opener, Port, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.link.taps import Tapper
from vconfs.protocol import tap
from vconfs.protocol.virtio1 import F_EMERG_WRITE, F_SIZE
from vconfs.protocol.virtio_pci import Common
from vconfs.protocol.virtqueue import F_EVENT_IDX, F_INDIRECT_DESC
from vconfs.testing import Puppet

PLAIN = 1 << 32 | 2
RINGS = [0, F_EVENT_IDX, F_INDIRECT_DESC, F_EVENT_IDX | F_INDIRECT_DESC]


@asynccontextmanager
async def driven(
    fake: FakeConsole, manager: PortManager | None = None
) -> AsyncIterator[tuple[Driver, PortManager]]:
    manager = manager or PortManager()
    async with drive(manager, open_pci(fake)) as driver:
        yield driver, manager


async def settled(holds: Callable[[], bool]) -> None:
    """Wait until all that was under way has been done, and see that something holds."""
    await trio.testing.wait_all_tasks_blocked()
    assert holds()


@pytest.mark.parametrize("vectors", [0, 1, 2, 9])
@pytest.mark.parametrize("rings", RINGS)
async def test_data_goes_both_ways(vectors: int, rings: int) -> None:
    puppet = Puppet()
    specs = [spec(b"con", console=True), spec(b"org.example.0", puppet)]
    async with (
        open_console(specs, vectors=vectors, features=PLAIN | rings) as fake,
        driven(fake) as (driver, manager),
        trio.open_nursery() as nursery,
    ):
        await settled(
            lambda: [port.name for port in manager.ports.values()] == [b"con", specs[1].name]
        )
        port, data = manager.ports[1], bytes(range(251)) * 9000
        nursery.start_soon(write_all, port, data)
        got = b""
        while len(got) < len(data):
            got += await puppet.port.receive()
        assert got == data
        nursery.start_soon(puppet.port.send, data)
        got = b""
        while len(got) < len(data):
            got += taken(await port.read(1 << 20))
        assert got == data
        assert driver.reason == ""
        assert manager.ignored == 0


async def write_all(port: Port, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await port.write(view) :]


@pytest.mark.parametrize("rings", RINGS)
async def test_pollers_are_woken_when_there_is_room(rings: int) -> None:
    puppet = Puppet()
    async with (
        open_console([spec(puppet=puppet, host_limit=1000)], features=PLAIN | rings) as fake,
        driven(fake) as (_, manager),
    ):
        await settled(lambda: 0 in manager.ports)
        port, changes = manager.ports[0], 0

        def count(port: Port) -> None:
            nonlocal changes
            changes += 1

        while port.poll() & select.POLLOUT:
            port.write_nowait(bytes(1 << 20))
        port.on_change = count
        while not port.poll() & select.POLLOUT:
            await puppet.port.receive()
            await trio.testing.wait_all_tasks_blocked()
        assert changes == 1


class Room:
    """Wakes tasks that wait for a port to be writable, as select does."""

    def __init__(self) -> None:
        self._opener = Opener(0)
        self._changed = trio.Event()

    def port_changed(self, port: Port) -> None:
        self._changed.set()

    def port_added(self, port: Port) -> None: ...
    def port_removed(self, port: Port) -> None: ...
    def port_renamed(self, port: Port, old: bytes) -> None: ...

    async def wait(self, port: Port) -> None:
        while not port.answer_poll(self._opener) & select.POLLOUT:
            self._changed = trio.Event()
            await self._changed.wait()


@settings(max_examples=examples(20))
@given(
    st.sampled_from(RINGS),
    st.sampled_from([0, 1, 2]),
    st.lists(st.sampled_from([1, 4096, 65_536, 65_537, 300_000, 1 << 20]), min_size=1, max_size=6),
    st.integers(0, 1 << 32),
    st.sampled_from(["up", "down", "up and down"]),
)
def test_any_sizes_at_any_pace(
    rings: int, vectors: int, sizes: list[int], seed: int, ways: str
) -> None:
    """One port's writer waits, another's polls; both are woken, and no byte is lost."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(transfer, rings, vectors, sizes, Random(seed), ways, clock=clock)


async def transfer(rings: int, vectors: int, sizes: list[int], chance: Random, ways: str) -> None:
    puppets = [Puppet(), Puppet()]
    specs = [spec(b"%d" % i, puppet, host_limit=100_000) for i, puppet in enumerate(puppets)]
    data = (chance.randbytes(65521) * (sum(sizes) // 65521 + 1))[: sum(sizes)]
    async with open_console(specs, vectors=vectors, features=PLAIN | rings) as fake:
        async with driven(fake) as (driver, manager):
            await settled(lambda: len(manager.ports) == 2)
            room = Room()
            with manager.observing(room), trio.fail_after(1):
                async with trio.open_nursery() as nursery:
                    if "up" in ways:
                        nursery.start_soon(write_waiting, manager.ports[0], data, sizes)
                        nursery.start_soon(write_polling, manager.ports[1], data, sizes, room)
                        for puppet in puppets:
                            nursery.start_soon(receive_slowly, puppet, data, chance)
                    if "down" in ways:
                        for port_id, puppet in enumerate(puppets):
                            nursery.start_soon(puppet.port.send, data)
                            nursery.start_soon(read_slowly, manager.ports[port_id], data, chance)
            assert driver.reason == ""


async def write_waiting(port: Port, data: bytes, sizes: list[int]) -> None:
    view = memoryview(data)
    for size in sizes:
        await write_all(port, bytes(view[:size]))
        view = view[size:]


async def write_polling(port: Port, data: bytes, sizes: list[int], room: Room) -> None:
    view, left = memoryview(data), list(sizes)
    while view:
        await room.wait(port)
        sent = port.write_nowait(view[: left[0]])
        view = view[sent:]
        left[0] -= sent
        if not left[0]:
            left.pop(0)
        await trio.lowlevel.checkpoint()


async def receive_slowly(puppet: Puppet, data: bytes, chance: Random) -> None:
    view = memoryview(data)
    while view:
        for _ in range(chance.randrange(4)):
            await trio.lowlevel.checkpoint()
        piece = await puppet.port.receive(chance.choice([1000, 1 << 16, 1 << 20]))
        assert piece == view[: len(piece)]
        view = view[len(piece) :]


async def read_slowly(port: Port, data: bytes, chance: Random) -> None:
    view = memoryview(data)
    while view:
        for _ in range(chance.randrange(4)):
            await trio.lowlevel.checkpoint()
        piece = taken(await port.read(chance.choice([1000, 1 << 16, 1 << 20])))
        assert piece == view[: len(piece)]
        view = view[len(piece) :]


# --- RESIZE -------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_first", [False, True])
async def test_the_order_of_a_size_is_an_option(rows_first: bool) -> None:
    async with (
        open_console([spec(console=True)], resize_rows_first=True) as fake,
        trio.open_nursery() as nursery,
    ):
        manager = PortManager()
        async with drive(manager, open_pci(fake, resize_rows_first=rows_first)):
            await settled(lambda: 0 in manager.ports)
            fake.host.resize(0, 132, 50)
            await settled(lambda: manager.ports[0].size == ((132, 50) if rows_first else (50, 132)))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("vectors", [0, 1, 2])
async def test_a_single_console_has_its_size_in_the_config_space(vectors: int) -> None:
    puppet = Puppet()
    async with (
        open_console(
            [spec(puppet=puppet, console=True)], features=1 << 32 | F_SIZE, vectors=vectors
        ) as fake,
        driven(fake) as (_, manager),
    ):
        console = manager.ports[0]
        assert console.console
        assert console.host_connected
        fake.host.resize(0, 132, 50)
        await settled(lambda: console.size == (132, 50))
        assert console.write_nowait(b"login: ") == 7
        assert await puppet.port.receive() == b"login: "
        await puppet.port.send(b"root")
        assert taken(await console.read(100)) == b"root"


# --- EMERG_WRITE --------------------------------------------------------------------------


def remembered() -> tuple[PortManager, Port]:
    """A console that is known from an earlier connection."""
    manager = PortManager(lambda port_id: PortOptions(throttle="enospc"))
    port = manager.add(0)
    port.become_console()
    return manager, port


async def test_early_output_of_a_console() -> None:
    """It goes out before the host has looked at a single message, and stays in front."""
    puppet = Puppet()
    manager, port = remembered()
    with pytest.raises(OSError) as caught:
        port.write_nowait(b"nowhere", nonblock=True)
    assert caught.value.errno == errno.ENOTCONN
    tapper = Tapper(lambda: None)
    manager.taps.begin(tapper)
    async with open_console([spec(b"con", puppet, console=True)], quiet=True) as fake:
        async with driven(fake, manager):
            assert port.poll() == select.POLLHUP | select.POLLOUT | select.POLLWRNORM
            assert port.write_nowait(b"panic: ") == 7
            assert await port.write(b"a" * 1000) == 256
            assert await puppet.port.receive() == b"panic: " + b"a" * 256
            assert not port.attached
            fake.serve()
            await settled(lambda: port.attached and port.host_connected)
            assert port.write_nowait(b"later") == 5
            assert await puppet.port.receive() == b"later"
            assert port.counters.bytes_out == 7 + 256 + 5
            shown = map(tap.parse, b"".join(tapper.backlog.take(1 << 16)).splitlines())
            out = [record.data for record in shown if record.event == "out"]
            assert out == [b"panic: ", b"a" * 256, b"later"]
        with pytest.raises(OSError) as caught:
            port.write_nowait(b"nowhere", nonblock=True)
        assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize(
    ("console", "features"),
    [(False, F_EMERG_WRITE), (True, 0)],
    ids=["another port", "a device without it"],
)
async def test_there_is_no_early_output(console: bool, features: int) -> None:
    manager = PortManager()
    port = manager.add(0)
    port.console = console
    async with (
        open_console([spec(console=True)], features=PLAIN | features, quiet=True) as fake,
        driven(fake, manager),
    ):
        with pytest.raises(OSError) as caught:
            port.write_nowait(b"nowhere", nonblock=True)
        assert caught.value.errno == errno.ENOTCONN


@pytest.mark.expect_log("device lost")
async def test_a_device_that_goes_before_the_port_came() -> None:
    manager, port = remembered()
    async with open_console([spec(console=True)], quiet=True) as fake:
        async with driven(fake, manager) as (driver, _):
            fake.go_away()
            await driver.stopped.wait()
            with pytest.raises(OSError) as caught:
                await port.write(b"nowhere")
            assert caught.value.errno == errno.ENOTCONN


async def test_what_comes_until_the_device_is_reset_is_received() -> None:
    """The host's data that the device has taken meanwhile is in the rings after its reset."""
    puppet, manager = Puppet(), PortManager()
    async with open_console([spec(b"con", puppet)]) as fake:

        def send_the_last() -> None:
            assert puppet.port.send_nowait(b"the last") == 8

        async with driven(fake, manager):
            await settled(lambda: 0 in manager.ports)
            port = manager.ports[0]
            port.open(Opener(1))
            fake.before_reset = send_the_last
        assert taken(await port.read(100)) == b"the last"
        assert fake.kicks_after_reset == []


async def test_our_own_reset_is_no_loss_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status that was asked for before the reset is read after it."""
    asked, was_reset = trio.Event(), trio.Event()
    async with open_console([spec(b"con")]) as fake:
        fake.before_reset = was_reset.set
        read = fake.read

        async def read_late(bar: int, offset: int, size: int) -> int:
            if (bar, offset) == (4, Common.DEVICE_STATUS.offset) and not asked.is_set():
                asked.set()
                await was_reset.wait()
            return await read(bar, offset, size)

        async with driven(fake) as (driver, _):
            monkeypatch.setattr(fake, "read", read_late)
            fake.isr = 3
            fake.interrupt()
            await asked.wait()
        assert driver.reason == ""


# --- unplugging ---------------------------------------------------------------------------


@pytest.mark.parametrize("queued", [b"", b"what was sent before", bytes(100_000)])
async def test_a_port_is_removed_while_it_is_read(queued: bytes) -> None:
    puppet = Puppet()
    async with (
        open_console([spec(b"stays"), spec(b"goes", puppet)]) as fake,
        driven(fake) as (driver, manager),
        trio.open_nursery() as nursery,
    ):
        await settled(lambda: 1 in manager.ports)
        port, got = manager.ports[1], []

        async def read() -> None:
            while True:
                got.append(taken(await port.read(100)))

        async def read_to_the_end() -> None:
            with pytest.raises(OSError) as caught:
                await read()
            assert caught.value.errno == errno.ENODEV

        nursery.start_soon(read_to_the_end)
        await trio.testing.wait_all_tasks_blocked()
        if queued:
            await puppet.port.send(queued)
        fake.host.remove(1)
        await settled(lambda: not nursery.child_tasks)
        assert b"".join(got) == queued
        assert not driver.stopped.is_set()
        assert list(manager.ports) == [0]


@pytest.mark.parametrize("hung_up", [False, True])
async def test_the_next_port_of_an_id_has_nothing_of_the_last_one(hung_up: bool) -> None:
    puppet = Puppet()
    async with (
        open_console([spec(b"stays"), spec(b"full", puppet)]) as fake,
        driven(fake) as (_, manager),
    ):
        await settled(lambda: 1 in manager.ports)
        full = manager.ports[1]
        full.set_options(PortOptions(limit=1000))
        while puppet.port.send_nowait(bytes(60_000)):
            await trio.testing.wait_all_tasks_blocked()
        if hung_up:
            puppet.port.disconnect()
            await trio.testing.wait_all_tasks_blocked()
        fake.host.remove(1)
        await fake.host.add(spec(b"next", id=1))
        await settled(lambda: 1 in manager.ports and manager.ports[1].name == b"next")
        fresh = manager.ports[1]
        assert full.removed
        assert full.queued > 100_000
        assert fresh.queued == 0
        assert fresh.host_connected
        with pytest.raises(trio.WouldBlock):
            fresh.read_nowait(10)


# --- a device that breaks the rules --------------------------------------------------------


@pytest.mark.expect_log("device lost")
async def test_a_reader_finds_that_the_ring_is_broken() -> None:
    """It is a program's read that looks at the ring here, and it must get its answer."""
    puppet = Puppet()
    async with open_console([spec(b"full", puppet)]) as fake, driven(fake) as (driver, manager):
        await settled(lambda: 0 in manager.ports)
        port = manager.ports[0]
        port.set_options(PortOptions(limit=1000))
        puppet.port.send_nowait(bytes(60_000))
        await settled(lambda: port.queued > 0)
        at = fake.words[0, Common.QUEUE_DEVICE_LOW]
        fake.view[at + 2 : at + 4] = b"\xff\xff"
        got = 0
        while piece := taken(port.read_nowait(1000)):
            got += len(piece)
        assert 1000 <= got < 60_000
        assert driver.reason.startswith("queue 0: used.idx jumped")
        assert not port.attached

"""The PCI driver's set-up, against a function that misbehaves in one way at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.unit.test_virtio_pci import BARS, REAL
from vconfs.device import pci
from vconfs.device.errors import DeviceError
from vconfs.device.pci import open_pci, plan_queues
from vconfs.driver import Driver
from vconfs.ports import PortManager
from vconfs.protocol.virtio_pci import NO_VECTOR, Common, Msix, Register, Status

ISR, CONFIG, NOTIFY = 0x1000, 0x2000, 0x3000


class FakeFunction:
    """A console's registers, as QEMU has them, with `vectors` MSI-X vectors."""

    def __init__(self, *, ports: int = 2, vectors: int = 0) -> None:
        self.memory = memoryview(bytearray(8 << 20))
        self.base = 1 << 40
        self.vectors = vectors
        self.function = REAL
        self.bars: Mapping[int, int] = BARS
        self.features = 0x10130000006
        self.config = bytes(4) + ports.to_bytes(4, "little")
        self.queues = 2 * ports + 2
        self.queue_size = 64
        self.notify_off: int | None = None
        self.status = 0
        self.isr = 0
        self.generation = 0
        self.generation_step = 0
        self.refused_status = 0
        self.refused_vectors: set[int] = set()
        self.resets = True
        self.words: dict[tuple[int, Register], int] = {}
        self.plain: dict[Register, int] = {}
        self.kicks: list[int] = []
        self.statuses: list[int] = []
        self.interrupts_to_driver, self.interrupts = trio.open_memory_channel[tuple[int, ...]](10)

    async def read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.function[offset : offset + size], "little")

    async def read_whole_config(self) -> bytes:
        return self.function

    async def bar_sizes(self) -> Mapping[int, int]:
        return self.bars

    async def enable_vectors(self, msix: Msix | None) -> int:
        return self.vectors

    async def wait_interrupt(self) -> Collection[int]:
        try:
            return await self.interrupts.receive()
        except trio.EndOfChannel:
            raise DeviceError("the bus is gone") from None

    async def read(self, bar: int, offset: int, size: int) -> int:
        await trio.lowlevel.checkpoint()
        assert bar == 4
        if offset == ISR:
            isr, self.isr = self.isr, 0
            return isr
        if offset >= CONFIG:
            at = offset - CONFIG
            return int.from_bytes(self.config[at : at + size], "little")
        return self._get(Register(offset, size))

    def _get(self, register: Register) -> int:
        queue = self.plain.get(Common.QUEUE_SELECT, 0)
        match register:
            case Common.DEVICE_FEATURE:
                return self.features >> 32 * self.plain[Common.DEVICE_FEATURE_SELECT] & 0xFFFFFFFF
            case Common.NUM_QUEUES:
                return self.queues
            case Common.DEVICE_STATUS:
                return self.status
            case Common.CONFIG_GENERATION:
                self.generation = (self.generation + self.generation_step) & 255
                return self.generation
            case Common.QUEUE_SIZE:
                return self.queue_size
            case Common.QUEUE_NOTIFY_OFF:
                return queue if self.notify_off is None else self.notify_off
            case Common.CONFIG_MSIX_VECTOR:
                return self.plain[register]
        return self.words.get((queue, register), 0)

    def post(self, bar: int, offset: int, size: int, value: int) -> None:
        assert bar == 4
        assert 0 <= value < 1 << 8 * size
        if offset >= NOTIFY:
            self.kicks.append(value)
            return
        register = Register(offset, size)
        if register == Common.DEVICE_STATUS:
            self._set_status(value)
        elif register in (Common.CONFIG_MSIX_VECTOR, Common.QUEUE_MSIX_VECTOR):
            self._store(register, NO_VECTOR if value in self.refused_vectors else value)
        else:
            self._store(register, value)

    def _store(self, register: Register, value: int) -> None:
        self.plain[register] = value
        self.words[self.plain.get(Common.QUEUE_SELECT, 0), register] = value

    def _set_status(self, value: int) -> None:
        self.statuses.append(value)
        if value:
            self.status = value & ~self.refused_status
        elif self.resets:
            self.status = 0
            self.words.clear()


@asynccontextmanager
async def driven(fake: FakeFunction) -> AsyncIterator[Driver]:
    async with open_pci(PortManager(), fake) as driver:
        yield driver


async def refused(fake: FakeFunction, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        async with driven(fake):
            raise AssertionError("the device was taken")


async def test_a_device_is_set_up_and_reset_at_the_end() -> None:
    fake = FakeFunction()
    async with driven(fake) as driver:
        assert isinstance(driver, Driver)
        assert fake.statuses == [0, 1, 3, 11, 15]
        enabled = [q for q in range(6) if fake.words[q, Common.QUEUE_ENABLE] == 1]
        assert enabled == list(range(6))
        assert 2 in fake.kicks  # control buffers are there
        for queue in range(6):
            address = fake.words[queue, Common.QUEUE_DESC_LOW]
            assert fake.words[queue, Common.QUEUE_DESC_HIGH] == fake.base >> 32
            assert address < len(fake.memory)
    assert fake.statuses[-1] == 0
    assert fake.status == 0


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [(1, [0] * 6), (2, [1] * 6), (3, [1, 2] * 3), (9, [1, 2, 3, 4, 5, 6])],
)
async def test_queues_share_the_vectors_there_are(vectors: int, expected: list[int]) -> None:
    fake = FakeFunction(vectors=vectors)
    async with driven(fake):
        assert fake.plain[Common.CONFIG_MSIX_VECTOR] == 0
        assert [fake.words[q, Common.QUEUE_MSIX_VECTOR] for q in range(6)] == expected


async def test_features_that_the_device_then_refuses() -> None:
    fake = FakeFunction()
    fake.refused_status = Status.FEATURES_OK
    await refused(fake, "refuses the features 0x1[0-9a-f]+ of its own 0x10130000006")
    assert Status.FAILED in fake.statuses
    assert fake.status == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("features", 0x30000006, "VERSION_1"),
        ("function", REAL[:6] + b"\0\0" + REAL[8:], "legacy"),
        ("bars", {4: 16384}, "MSI-X table: BAR 1 has no memory"),
        ("queues", 5, "num_queues is 5, and 6 are needed"),
        ("queue_size", 0, "queue_size 0 of queue 0"),
        ("queue_size", 96, "queue_size 96 of queue 0"),
        ("notify_off", 1024, "queue_notify_off 1024 of queue 0"),
        ("generation_step", 1, "does not stand still"),
        ("config", bytes(8), "max_nr_ports 0"),
        ("config", b"\xff" * 8, "max_nr_ports 4294967295"),
        ("memory", memoryview(bytearray(1 << 16)), "0 MiB of memory are too few for 6 queues"),
    ],
)
async def test_a_device_that_is_refused(field: str, value: object, message: str) -> None:
    fake = FakeFunction()
    setattr(fake, field, value)
    await refused(fake, message)


@pytest.mark.parametrize("vector", [0, 1])
async def test_a_vector_that_the_device_refuses(vector: int) -> None:
    fake = FakeFunction(vectors=2)
    fake.refused_vectors = {vector}
    await refused(fake, f"refuses MSI-X vector {vector}")


async def test_a_reset_that_never_ends(autojump_clock: trio.testing.MockClock) -> None:
    fake = FakeFunction()
    fake.resets, fake.status = False, 15
    await refused(fake, "has not finished a reset in 2 s")
    assert trio.current_time() < 10


@pytest.mark.parametrize("vectors", [0, 1, 2])
@pytest.mark.parametrize(
    ("status", "reason"),
    [(15 | Status.NEEDS_RESET, "needs a reset"), (0xFF, "the device is gone")],
)
async def test_a_running_device_fails(vectors: int, status: int, reason: str) -> None:
    fake = FakeFunction(vectors=vectors)
    async with driven(fake) as driver:
        fake.status, fake.isr = status, 2
        await fake.interrupts_to_driver.send((0,) if vectors else ())
        await driver.stopped.wait()
        assert reason in driver.reason


@pytest.mark.parametrize("vectors", [0, 1, 2])
async def test_a_ring_that_breaks_the_rules(vectors: int) -> None:
    fake = FakeFunction(vectors=vectors)
    async with driven(fake) as driver:
        at = fake.words[2, Common.QUEUE_DEVICE_LOW]
        fake.memory[at + 2 : at + 4] = b"\xff\xff"
        fake.isr = 1
        await fake.interrupts_to_driver.send((min(1, vectors - 1),) if vectors else ())
        await driver.stopped.wait()
        assert "queue 2: used.idx jumped" in driver.reason


async def test_the_bus_goes_away() -> None:
    fake = FakeFunction()
    async with driven(fake) as driver:
        fake.interrupts_to_driver.close()
        await driver.stopped.wait()
        assert driver.reason == "the bus is gone"


async def test_interrupts_without_end_starve_nobody() -> None:
    fake = FakeFunction()
    async with driven(fake) as driver, trio.open_nursery() as nursery:
        nursery.start_soon(interrupt_for_ever, fake)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert not driver.stopped.is_set()
        nursery.cancel_scope.cancel()


async def interrupt_for_ever(fake: FakeFunction) -> None:
    while True:
        fake.isr = 3
        await fake.interrupts_to_driver.send(())


@pytest.mark.parametrize(("ports", "memory"), [(1, 4 << 20), (31, 63 << 20), (511, 63 << 20)])
def test_the_memory_is_shared_out(ports: int, memory: int) -> None:
    specs = plan_queues([128] * (2 * ports + 2), pci._F_MULTIPORT, memory)
    assert len(specs) == 2 * ports + 2
    assert sum(spec.memory for spec in specs.values()) <= memory

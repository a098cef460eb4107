"""The PCI driver's set-up, against a function that misbehaves in one way at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.unit.device.fake_function import FakeFunction
from tests.unit.protocol.test_virtio_pci import REAL
from vconfs.device._device_memory import DeviceMemory
from vconfs.device.pci import open_pci, plan_queues
from vconfs.errors import VconfsError
from vconfs.guest.driver import Driver, drive
from vconfs.guest.ports import PortManager
from vconfs.protocol.virtio1 import F_EMERG_WRITE, F_MULTIPORT
from vconfs.protocol.virtio_pci import Common, Status


@asynccontextmanager
async def driven(fake: FakeFunction) -> AsyncIterator[Driver]:
    async with drive(PortManager(), open_pci(fake)) as driver:
        yield driver


async def refused(fake: FakeFunction, message: str) -> None:
    with pytest.raises(VconfsError, match=message):
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
            assert address < len(fake.view)
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
    await refused(fake, "refuses the features 0x1[0-9a-f]+ of the offered 0x10130000006")
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
        ("generation_step", 1, "changes all the time"),
        ("config", bytes(8), "max_nr_ports 0"),
        ("config", b"\xff" * 8, "max_nr_ports 4294967295"),
        (
            "memory",
            DeviceMemory.at(memoryview(bytearray(1 << 16))),
            "0 MiB of memory are not enough for 6 queues",
        ),
    ],
)
async def test_a_device_that_is_refused(field: str, value: object, message: str) -> None:
    fake = FakeFunction()
    setattr(fake, field, value)
    await refused(fake, message)


@pytest.mark.parametrize(
    ("vectors", "refused", "queues"),
    [
        (3, {5}, [1, 2] * 3),
        (9, {4}, [1] * 6),
        (9, {1}, [0] * 6),
        (9, {0}, None),
    ],
    ids=["all are taken", "two", "one", "the line"],
)
async def test_a_device_that_refuses_vectors_gets_fewer(
    vectors: int, refused: set[int], queues: list[int] | None
) -> None:
    fake = FakeFunction(vectors=vectors)
    fake.refused_vectors = refused
    async with driven(fake) as driver:
        if queues is None:
            assert fake.vectors == 0
        else:
            assert fake.plain[Common.CONFIG_MSIX_VECTOR] == 0
            assert [fake.words[q, Common.QUEUE_MSIX_VECTOR] for q in range(6)] == queues
        assert not driver.stopped.is_set()


@pytest.mark.parametrize(("length", "accepted"), [(8, False), (11, False), (12, True)])
async def test_early_output_needs_a_place_in_the_config_space(length: int, accepted: bool) -> None:
    fake = FakeFunction()
    fake.function = REAL[:0x6C] + length.to_bytes(4, "little") + REAL[0x70:]
    async with driven(fake) as driver:
        assert bool(driver._end.features & F_EMERG_WRITE) == accepted  # type: ignore[attr-defined]


async def test_a_reset_that_never_ends(autojump_clock: trio.testing.MockClock) -> None:
    fake = FakeFunction()
    fake.resets, fake.status = False, 15
    await refused(fake, "has not finished a reset in 2 s")
    assert trio.current_time() < 10


async def test_a_device_that_does_not_let_go(autojump_clock: trio.testing.MockClock) -> None:
    """The reset at the end is asked for, and not waited for without end."""
    fake = FakeFunction()
    async with driven(fake):
        fake.resets = False
    assert fake.statuses[-1] == 0
    assert fake.status == 15
    assert trio.current_time() < 10


@pytest.mark.parametrize("vectors", [0, 1, 2])
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (15 | Status.NEEDS_RESET, "needs a reset"),
        (0xFF, "the device is gone"),
        (0, "another program has reset the device"),
    ],
)
@pytest.mark.expect_log("device lost")
async def test_a_running_device_fails(vectors: int, status: int, reason: str) -> None:
    fake = FakeFunction(vectors=vectors)
    async with driven(fake) as driver:
        fake.status, fake.isr = status, 2
        fake.interrupt(0 if vectors else None)
        await driver.stopped.wait()
        assert reason in driver.reason


@pytest.mark.expect_log("device lost")
async def test_a_reset_without_an_interrupt(autojump_clock: trio.testing.MockClock) -> None:
    fake = FakeFunction()
    async with driven(fake) as driver:
        await trio.sleep(100)
        assert not driver.stopped.is_set()
        fake.status = 0
        await driver.stopped.wait()
        assert driver.reason == "another program has reset the device"
        assert trio.current_time() < 110


@pytest.mark.parametrize("vectors", [0, 1, 2])
@pytest.mark.expect_log("device lost")
async def test_a_ring_that_breaks_the_rules(vectors: int) -> None:
    fake = FakeFunction(vectors=vectors)
    async with driven(fake) as driver:
        at = fake.words[2, Common.QUEUE_DEVICE_LOW]
        fake.view[at + 2 : at + 4] = b"\xff\xff"
        fake.isr = 1
        fake.interrupt(min(1, vectors - 1) if vectors else None)
        await driver.stopped.wait()
        assert "queue 2: used.idx jumped" in driver.reason


@pytest.mark.expect_log("device lost")
async def test_the_bus_goes_away() -> None:
    fake = FakeFunction()
    async with driven(fake) as driver:
        fake.go_away()
        await driver.stopped.wait()
        assert driver.reason == "the bus is gone"


async def test_endless_interrupts_starve_no_task() -> None:
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
        fake.interrupt()
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(("ports", "memory"), [(1, 4 << 20), (31, 63 << 20), (511, 63 << 20)])
def test_the_memory_is_shared_out(ports: int, memory: int) -> None:
    whole = DeviceMemory.at(memoryview(bytes(memory)))
    specs = plan_queues([128] * (2 * ports + 2), F_MULTIPORT, whole)
    assert len(specs) == 2 * ports + 2
    assert sum(spec.memory for spec in specs.values()) <= memory

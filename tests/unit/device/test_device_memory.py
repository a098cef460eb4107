"""Where queues are in a device's memory, in one run of addresses or in many."""

from __future__ import annotations

import pytest

from vconfs.device._device_memory import DeviceMemory, Place, Run, find_runs
from vconfs.device._slots import lay_out
from vconfs.device.pci import plan_queues
from vconfs.errors import VconfsError
from vconfs.protocol.virtio1 import F_MULTIPORT

PAGE = 2 << 20


@pytest.mark.parametrize(
    ("addresses", "runs"),
    [
        ([], []),
        ([6], [(0, 1, 6)]),
        ([6, 7, 8], [(0, 3, 6)]),
        ([8, 7, 6], [(0, 1, 8), (1, 1, 7), (2, 1, 6)]),
        ([6, 7, 3, 4, 9], [(0, 2, 6), (2, 2, 3), (4, 1, 9)]),
    ],
)
def test_runs_of_pages(addresses: list[int], runs: list[tuple[int, int, int]]) -> None:
    found = find_runs([PAGE * number for number in addresses], PAGE)
    assert found == [Run(PAGE * start, PAGE * size, PAGE * number) for start, size, number in runs]


def test_a_queue_is_in_the_first_run_that_has_room() -> None:
    runs = [Run(0, 20, 1000), Run(20, 50, 100)]
    memory = DeviceMemory(memoryview(b""), runs)
    assert list(memory.places([10, 40, 10, 10])) == [
        Place(0, 1000),
        Place(20, 80),
        Place(10, 1000),
        Place(60, 80),
    ]
    assert memory.has_room([10, 40, 10, 10])
    assert not memory.has_room([60])
    with pytest.raises(ValueError, match="no run has room for 60 bytes"):
        list(memory.places([60]))


@pytest.mark.parametrize("count", [2, 4, 8, 16, 32])
def test_the_queues_of_31_ports_in_scattered_pages(count: int) -> None:
    """Each queue is inside one page, and none overlaps another."""
    memory = scattered(count)
    specs = plan_queues([128] * 64, F_MULTIPORT, memory)
    taken: set[int] = set()
    for _, queue in lay_out(memory, specs):
        offset, size = queue.layout.desc, queue.size
        assert offset // PAGE == (offset + size - 1) // PAGE
        assert queue.base + offset == memory.runs[offset // PAGE].address + offset % PAGE
        blocks = set(range(offset, offset + size, 4096))
        assert not taken & blocks
        taken |= blocks


def scattered(count: int) -> DeviceMemory:
    """Return memory of pages, none of which follows another one."""
    addresses = [PAGE * 2 * (count - number) for number in range(count)]
    return DeviceMemory(memoryview(bytearray(PAGE * count)), find_runs(addresses, PAGE), "ask root")


def test_too_little_memory_leads_to_more() -> None:
    with pytest.raises(VconfsError) as caught:
        plan_queues([128] * 1024, F_MULTIPORT, scattered(2))
    assert str(caught.value) == "4 MiB of memory are not enough for 1024 queues; ask root"

"""The work that a guest makes in one turn of the event loop is bounded, whatever it offers."""

from __future__ import annotations

import struct

import trio
import trio.testing

from vconfs.host.rings import DeviceLink
from vconfs.protocol.virtqueue import (
    DESC_NEXT,
    DESC_WRITE,
    DeviceQueue,
    GuestMemory,
    Layout,
)

SIZE = 1024
HEADER = 12


class Owner:
    """Takes what comes, as an end does; counts the turns in which something did."""

    def __init__(self, link: DeviceLink) -> None:
        self.link = link
        self.buffers = 0
        self.bytes = 0
        self.turns = 0
        self.rooms = 0
        self.reason = ""

    def received(self, queue: int) -> None:
        self.turns += 1
        while (buffer := self.link.receive(queue)) is not None:
            self.buffers += 1
            self.bytes += len(buffer)
            self.link.done(queue)
        self.link.flush(queue)

    def room(self, queue: int) -> None:
        self.rooms += 1

    def config_changed(self) -> None: ...

    def lost(self, reason: str) -> None:
        self.reason = reason

    def left(self) -> None: ...


class Guest:
    """A guest's driver without manners: it writes the tables itself."""

    def __init__(self, memory: int = 8 << 20) -> None:
        self.memory = memoryview(bytearray(memory))
        self.layout = Layout.at(SIZE, 0)
        self.calls: list[int] = []

    def chain_all(self, length: int, flags: int = 0) -> None:
        """Make one chain of all descriptors; it can be entered at each of them."""
        at = -(-self.layout.end // 4096) * 4096
        for i in range(SIZE):
            last = i == SIZE - 1
            place = (16 * i, at, length, flags | (0 if last else DESC_NEXT), 0 if last else i + 1)
            struct.pack_into("<QIHH", self.memory, *place)

    def offer(self, *heads: int) -> None:
        index = struct.unpack_from("<H", self.memory, self.layout.avail + 2)[0]
        for head in heads:
            place = self.layout.avail + 4 + 2 * (index % SIZE)
            struct.pack_into("<H", self.memory, place, head)
            index += 1
        struct.pack_into("<H", self.memory, self.layout.avail + 2, index)

    @property
    def used(self) -> int:
        index = struct.unpack_from("<H", self.memory, self.layout.used + 2)[0]
        assert isinstance(index, int)
        return index

    def link(self, queue: int) -> tuple[DeviceLink, Owner]:
        ring = DeviceQueue(GuestMemory([(0, self.memory)]), self.layout)
        link = DeviceLink({queue: ring}, features=0, call=self.calls.append, header_size=HEADER)
        link.owner = owner = Owner(link)
        return link, owner


async def test_a_ring_of_long_chains_takes_many_turns_and_all_of_it_comes() -> None:
    guest = Guest()
    guest.chain_all(16)
    guest.offer(*range(SIZE))
    link, owner = guest.link(1)
    link.kicked(1)
    assert 0 < owner.buffers <= 5
    assert link.is_spent
    await trio.testing.wait_all_tasks_blocked()
    assert (owner.buffers, guest.used) == (SIZE, SIZE)
    assert owner.bytes == 16 * SIZE * (SIZE + 1) // 2
    assert owner.turns > 60


async def test_a_ring_of_large_buffers_takes_many_turns() -> None:
    guest = Guest()
    for i in range(SIZE):
        struct.pack_into("<QIHH", guest.memory, 16 * i, 1 << 20, 4 << 20, 0, 0)
    guest.offer(*range(100))
    link, owner = guest.link(1)
    link.kicked(1)
    assert owner.bytes <= 16 << 20
    await trio.testing.wait_all_tasks_blocked()
    assert owner.bytes == 400 << 20


async def test_what_the_own_guest_end_has_in_its_rings_is_one_turn() -> None:
    guest = Guest()
    for i in range(SIZE):
        struct.pack_into("<QIHH", guest.memory, 16 * i, 1 << 20, (1 << 18) + 64, 0, 0)
    guest.offer(*range(16))
    link, owner = guest.link(1)
    for _ in range(3):
        link.kicked(1)
    assert owner.buffers == 16
    assert not link.is_spent


async def test_empty_buffers_are_taken_as_they_are_needed() -> None:
    guest = Guest()
    guest.chain_all(16, DESC_WRITE)
    guest.offer(*range(SIZE))
    link, _ = guest.link(0)
    assert link.find_room(0, HEADER) == 16 * SIZE - HEADER
    assert link._queues[0].in_flight == 1
    link.send(0, bytes(HEADER), b"data")
    assert link.find_buffer(0, 1) == 16 * (SIZE - 1)
    assert link._queues[0].in_flight == 1


async def test_useless_buffers_are_work_too_and_room_is_told_in_the_end() -> None:
    guest = Guest()
    guest.chain_all(0, DESC_WRITE)
    struct.pack_into("<QIHH", guest.memory, 16 * (SIZE - 1), 1 << 20, 4096, DESC_WRITE, 0)
    struct.pack_into("<H", guest.memory, 16 * (SIZE - 2) + 14, 0)
    struct.pack_into("<H", guest.memory, 16 * (SIZE - 2) + 12, DESC_WRITE)
    guest.offer(*range(SIZE))
    link, owner = guest.link(0)
    assert link.find_room(0, HEADER) == 0
    assert link.is_spent
    while not link.find_room(0, HEADER):
        await trio.testing.wait_all_tasks_blocked()
    assert link.find_room(0, HEADER) == 4096 - HEADER
    assert owner.rooms > 10


async def test_queues_without_a_turn_come_first() -> None:
    guest = Guest()
    guest.chain_all(16)
    guest.offer(*range(SIZE))
    link, _ = guest.link(1)
    calm = Guest()
    struct.pack_into("<QIHH", calm.memory, 0, 1 << 20, 4, 0, 0)
    calm.offer(0)
    link.start_queue(3, DeviceQueue(GuestMemory([(0, calm.memory)]), calm.layout))
    link.kicked(1)
    link.kicked(3)
    assert not calm.used
    while not calm.used:
        await trio.lowlevel.checkpoint()
    assert 0 < guest.used < SIZE // 10

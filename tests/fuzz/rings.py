"""Targets: both sides of a virtqueue, and the links of both ends over one, with a hostile peer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import trio

from tests.support.chaining_driver import ChainingDriver
from vconfs.device._device_memory import DeviceMemory
from vconfs.device._rings import RingLink
from vconfs.device._slots import QueueSpec, lay_out
from vconfs.host.rings import DeviceLink
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError
from vconfs.protocol.virtqueue import (
    PARTS_MAX,
    Chain,
    DeviceQueue,
    DriverQueue,
    GuestMemory,
    Layout,
)

from .target import Source, target

_MEMORY = 1 << 13
_BUFFERS = 1 << 12
_TABLES = 3 << 11  # indirect tables, of 128 bytes
_PARTS = 8


class _Sides:
    """Both sides of one queue; all steps of an input are theirs, and changes of the memory."""

    def __init__(self, source: Source) -> None:
        self.source = source
        bits = source.number()
        size, event_idx = 1 << (bits & 3), bool(bits & 4)
        base = source.number(2) if bits & 8 else 0
        self.memory = memoryview(bytearray(_MEMORY))
        self.layout = Layout.at(size, 0)
        self.driver = ChainingDriver(self.memory, self.layout, event_idx=event_idx)
        if base:  # a queue that has been in use: its indices are about to wrap
            self.driver._added = self.driver._published = self.driver._seen = base
            self.memory[self.layout.avail + 2 : self.layout.avail + 4] = base.to_bytes(2, "little")
            self.memory[self.layout.used + 2 : self.layout.used + 4] = base.to_bytes(2, "little")
        self.device = DeviceQueue(
            GuestMemory([(0, self.memory)]), self.layout, event_idx=event_idx, next_avail=base
        )
        self.tables = list(range(_TABLES, _MEMORY, 128))
        self.table_of: dict[int, int] = {}
        self.taken: list[Chain] = []
        self.broken = False  # by a change of the memory

    def offer(self) -> None:
        at, length = _BUFFERS + self.source.number(), self.source.number()
        with suppress(LocalProtocolError):
            self.driver.add(at, length, writable=bool(length & 1))

    def offer_parts(self) -> None:
        count = self.source.number() % _PARTS
        readable = self.source.number() % (count + 1)
        parts = [(_BUFFERS + 16 * i, self.source.number(), i >= readable) for i in range(count)]
        with suppress(LocalProtocolError):
            if self.source.number() & 1 and self.tables:
                self.table_of[self.driver.add_indirect(self.tables[-1], parts)] = self.tables[-1]
                self.tables.pop()
            else:
                self.driver.add_chain(parts)

    def take_back(self) -> None:
        used = self.driver.pop_used()
        if used is not None and used[0] in self.table_of:
            self.tables.append(self.table_of.pop(used[0]))

    def pop(self) -> None:
        chain = self.device.pop()
        if chain is not None:
            assert chain.parts <= PARTS_MAX
            assert chain.readable_length == sum(map(len, chain.readable))
            assert chain.writable_length == sum(map(len, chain.writable))
            self.taken.append(chain)

    def push(self) -> None:
        if self.taken:
            chain = self.taken.pop(self.source.number() % len(self.taken))
            written = min(self.source.number(), chain.writable_length)
            self.device.push(chain.head, written)
            if not self.source.number() & 7:
                self.device.watch(chain.head)

    def change_ring(self) -> None:
        """Change two bytes of the queue's tables; neither side has written this."""
        at = 2 * (self.source.number(2) % (self.layout.end // 2))
        self.memory[at : at + 2] = self.source.take(2).ljust(2, b"\0")
        self.broken = True

    def change_table(self) -> None:
        """Change two bytes of an indirect table."""
        at = _TABLES + 2 * (self.source.number(2) % ((_MEMORY - _TABLES) // 2))
        self.memory[at : at + 2] = self.source.take(2).ljust(2, b"\0")
        self.broken = True

    def ask(self) -> None:
        """Call everything that only asks for notifications, or looks."""
        if self.source.number() & 1:
            self.driver.suppress_calls()
            self.device.suppress_kicks()
        else:
            self.driver.request_calls()
            self.device.request_kicks()
        self.device.returned()
        assert 0 <= self.device.in_flight <= self.device.size
        assert self.driver.free <= self.driver.size

    def check(self) -> None:
        """Without changes of the memory, each side knows what the other one did."""
        if not self.broken:
            assert self.driver.in_flight >= self.device.in_flight == len(self.taken)


@target()
def virtqueue(data: bytes) -> None:
    sides = _Sides(Source(data))
    steps: tuple[Callable[[], object], ...] = (
        sides.offer,
        sides.offer_parts,
        sides.driver.publish,
        sides.take_back,
        sides.pop,
        sides.push,
        sides.device.publish,
        sides.ask,
        sides.change_ring,
        sides.change_table,
    )
    while sides.source.more:
        try:
            steps[sides.source.number() % len(steps)]()
            sides.check()
        except RemoteProtocolError:
            assert sides.broken, "an honest side was accused"
            return


@target()
def virtqueue_receiving(data: bytes) -> None:
    """A receive queue, whose driver keeps the descriptors; the device's entries are arbitrary."""
    source = Source(data)
    size, event_idx = 1 << (source.number() & 3), bool(source.number() & 1)
    memory, layout = memoryview(bytearray(_MEMORY)), Layout.at(size, 0)
    driver = DriverQueue(memory, layout, event_idx=event_idx)
    for slot in range(size):
        driver.add(_BUFFERS + 64 * slot, 64, writable=True)
    driver.publish()
    at_us: set[int] = set()
    while source.more:
        step = source.number() % 4
        if step == 0:
            entry = layout.used + 4 + 8 * (source.number() % size)
            memory[entry : entry + 8] = source.take(8).ljust(8, b"\0")
        elif step == 1:
            memory[layout.used + 2 : layout.used + 4] = source.take(2).ljust(2, b"\0")
        elif step == 2:
            driver.offer_many(at_us, 64)
            at_us.clear()
            driver.publish()
            driver.request_calls()
        else:
            try:
                popped = driver.pop_many(source.number())
            except RemoteProtocolError:
                return
            for head, written in popped:
                assert head < size and written <= 64 and head not in at_us
                at_us.add(head)


# --- the links of both ends ---------------------------------------------------------------

_SPECS = {0: QueueSpec(4, 256), 1: QueueSpec(8, 256, 4, parts=2, shared=True)}


class _Owner:
    """Takes what comes, as an end does, and remembers that the link was lost."""

    def __init__(self, link: RingLink | DeviceLink, receives: int) -> None:
        self.link, self.receives = link, receives
        self.is_lost = False
        self.keeps = False
        link.owner = self

    def received(self, queue: int) -> None:
        for _ in range(64):
            buffer = self.link.receive(self.receives)
            if buffer is None:
                break
            bytes(buffer)
            if self.keeps:
                self.link.withhold(self.receives)
            else:
                self.link.done(self.receives)
        self.link.flush(self.receives)

    def room(self, queue: int) -> None: ...
    def config_changed(self) -> None: ...
    def left(self) -> None: ...

    def lost(self, reason: str) -> None:
        assert not self.is_lost, "lost twice"
        self.is_lost = True

    def send(self, queue: int, data: bytes) -> None:
        capacity = self.link.find_buffer(queue, 1)
        if capacity and not self.is_lost:
            self.link.send(queue, b"", data[:capacity], lambda: None, port_id=0)
            self.link.flush(queue)
        assert self.link.find_room(queue, 12) >= 0


def _change(memory: memoryview, source: Source, within: int) -> None:
    at = 2 * (source.number(2) % (within // 2))
    memory[at : at + 2] = source.take(2).ljust(2, b"\0")


async def _be_device(source: Source) -> None:
    size = sum(spec.memory for spec in _SPECS.values())
    memory = memoryview(bytearray(size))
    event_idx = bool(source.number() & 1)
    link = RingLink(
        dict(lay_out(DeviceMemory.at(memory), _SPECS, event_idx=event_idx)),
        features=0,
        kick=lambda queue: None,
        read_config=bytes,
    )
    owner = _Owner(link, receives=0)
    link.start()
    device = {n: DeviceQueue(GuestMemory([(0, memory)]), link.layout(n)) for n in _SPECS}
    while source.more and not owner.is_lost:
        step, queue = source.number() % 6, source.number() & 1
        if step == 0:
            with suppress(RemoteProtocolError, LocalProtocolError):
                if chain := device[queue].pop():
                    device[queue].push(chain.head, min(source.number(), chain.writable_length))
                    device[queue].publish()
        elif step == 1:
            link.interrupt(queue)
        elif step == 2:
            owner.send(1, source.piece())
        elif step == 3:
            layout = link.layout(queue)
            _change(memory[layout.desc :], source, layout.end - layout.desc)
        elif step == 4:
            owner.keeps = not owner.keeps
            if not owner.keeps:
                link.release(0)
        else:
            link.interrupt_used(_SPECS)
        await trio.lowlevel.checkpoint()
    link.untaken()
    link.close()


@target()
def guest_rings(data: bytes) -> None:
    trio.run(_be_device, Source(data))


async def _be_driver(source: Source) -> None:
    memory, event_idx = memoryview(bytearray(_MEMORY)), bool(source.number() & 1)
    layouts = [Layout.at(8, 0), Layout.at(8, 512)]
    drivers = [DriverQueue(memory, layout, event_idx=event_idx) for layout in layouts]
    guest_memory = GuestMemory([(0, memory)])
    rings = {
        number: DeviceQueue(guest_memory, layout, event_idx=event_idx)
        for number, layout in enumerate(layouts)
    }
    link = DeviceLink(rings, features=0, call=lambda queue: None, header_size=12)
    owner = _Owner(link, receives=1)
    while source.more and not owner.is_lost:
        step, queue = source.number() % 6, source.number() & 1
        with suppress(RemoteProtocolError, LocalProtocolError):  # of our own driver
            if step == 0:
                drivers[queue].add(source.number(2), source.number(), writable=not queue)
                drivers[queue].publish()
            elif step == 1:
                drivers[queue].pop_used()
        if step == 2:
            link.kicked(queue)
        elif step == 3:
            owner.send(0, source.piece())
        elif step == 4:
            _change(memory, source, _MEMORY)
        elif step == 5:
            owner.keeps = not owner.keeps
            if not owner.keeps:
                link.release(1)
        await trio.lowlevel.checkpoint()
    for queue in rings:
        link.stop_queue(queue)


@target()
def host_rings(data: bytes) -> None:
    trio.run(_be_driver, Source(data))

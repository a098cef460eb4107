"""The virtqueues of the guest end's link, and their slots: see _rings.py."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import trio
from attrs import frozen

from vconfs.device._device_memory import DeviceMemory
from vconfs.protocol.events import Buffer
from vconfs.protocol.virtqueue import DriverQueue, Layout

_PAGE = 4096
#: Where data begins matters more than it seems. A CPU copies 12 times more slowly if the
#: destination is 1 to 15 bytes behind the source, modulo a page (`rep movsb` of an AMD EPYC: 306
#: instead of 25 us per MiB). And what programs read into is at 0 in a page or, from malloc, at 16.
_CACHE_LINE = 64
_ZEROS_SIZE = 1 << 19
_ZEROS = memoryview(bytes(_ZEROS_SIZE))
#: How many queues are laid out in one turn of the event loop. The memory may be in a file, of which
#: the first access to each page can take a millisecond.
_QUEUES_PER_TURN = 8
#: Replaces the head of a received buffer that its owner keeps.
_KEPT = -1


@frozen(cache_hash=True)
class QueueSpec:
    """The shape of one queue: its descriptors, bytes per slot, and slots.

    A queue may have fewer slots than descriptors; 0 means as many as descriptors. One sent buffer
    fills up to `parts` slots; more than one needs INDIRECT_DESC. A queue is `shared` unless all its
    data belongs to one port. Then sent slots are zeroed when they come back, unless the memory is
    `private`: no other process has it. With `header`, the size of what precedes the data in a slot,
    the data begins with a cache line.
    """

    size: int
    slot_size: int
    slots: int = 0
    parts: int = 1
    shared: bool = True
    private: bool = False
    header: int = 0

    @property
    def buffers(self) -> int:
        """The number of slots."""
        return self.slots or self.size

    @property
    def table_size(self) -> int:
        """The size of an indirect table in bytes, or 0 if there are none."""
        return 16 * self.parts if self.parts > 1 else 0

    @property
    def rings(self) -> int:
        """The bytes that the rings and an indirect table per slot need, in whole pages."""
        tables = -(-Layout.at(self.size, 0).end // 16) * 16
        return _pages(tables + self.buffers * self.table_size)

    @property
    def memory(self) -> int:
        """The bytes of DMA memory that the queue needs, in whole pages."""
        return self.rings + self.buffers * self.stride

    @property
    def lead(self) -> int:
        """The bytes before each slot, so that its data begins with a cache line."""
        return -self.header % _CACHE_LINE

    @property
    def stride(self) -> int:
        """The bytes from one slot to the next, in whole pages."""
        return _pages(self.lead + self.slot_size)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


class SlotQueue:
    """One virtqueue and its slots."""

    def __init__(
        self, memory: memoryview, offset: int, spec: QueueSpec, base: int, event_idx: bool
    ) -> None:
        self.memory = memory
        self.size = spec.memory
        self.base = base
        self.layout = Layout.at(spec.size, offset)
        memory[offset : self.layout.end] = bytes(self.layout.end - offset)
        self.ring = DriverQueue(memory, self.layout, base=base, event_idx=event_idx)
        self.slot_size = spec.slot_size
        self.buffers = spec.buffers
        first = offset + spec.rings + spec.lead
        stride = spec.stride
        self.slots = [first + stride * i for i in reversed(range(spec.buffers))]


class ReceiveQueue(SlotQueue):
    def __init__(
        self, memory: memoryview, offset: int, spec: QueueSpec, base: int, event_idx: bool
    ) -> None:
        super().__init__(memory, offset, spec, base, event_idx)
        #: Descriptor → its slot, for ever.
        self.slot_of = [memory[:0]] * spec.size
        self.held: deque[int] = deque()  # descriptors whose bytes the owner still reads
        self.kept = 0  # how many the owner keeps for longer: at most half
        self.kept_max = spec.buffers // 2
        self.withheld: list[int] = []  # descriptors that the device gets back later
        for slot in reversed(self.slots):
            head = self.ring.add(slot, spec.slot_size, writable=True)
            self.slot_of[head] = memory[slot : slot + spec.slot_size]

    def receive_one(self) -> memoryview | None:
        if (used := self.ring.pop_kept()) is None:
            return None
        head, written = used
        self.held.append(head)
        slot = self.slot_of[head]
        return slot if written == self.slot_size else slot[:written]

    def receive(self, most: int) -> list[memoryview]:
        used, slot_of, size = self.ring.pop_many(most), self.slot_of, self.slot_size
        self.held += [head for head, _ in used]
        return [
            slot_of[head] if written == size else slot_of[head][:written] for head, written in used
        ]

    def hold(self) -> int | None:
        if self.kept >= self.kept_max:
            return None
        self.kept += 1
        head, self.held[-1] = self.held[-1], _KEPT
        return head

    def give_back(self, head: int) -> None:
        self.kept -= 1
        self.ring.offer(head, self.slot_size)

    def withhold(self) -> None:
        head = self.held.popleft()
        if head != _KEPT:
            self.withheld.append(head)

    def release(self) -> None:
        heads, self.withheld = self.withheld, []
        self.ring.offer_many(heads, self.slot_size)

    def done_one(self) -> None:
        if (head := self.held.popleft()) != _KEPT:
            self.ring.offer(head, self.slot_size)

    def done(self, count: int) -> None:
        held = self.held
        heads = [held.popleft() for _ in range(count)]
        self.ring.offer_many([head for head in heads if head != _KEPT], self.slot_size)


class SendQueue(SlotQueue):
    def __init__(
        self, memory: memoryview, offset: int, spec: QueueSpec, base: int, event_idx: bool
    ) -> None:
        super().__init__(memory, offset, spec, base, event_idx)
        self.parts = spec.parts
        self.zeroes = spec.shared and not spec.private
        #: Slots that data leaves for control messages.
        self.reserve = 1 if spec.shared and spec.buffers > 1 else 0
        #: Descriptor of a buffer → what to call when the device has used it.
        self.awaited: dict[int, Callable[[], None]] = {}
        self.seen: list[Callable[[], None]] = []  # what to call now
        #: Descriptor → the slots of its buffer, and how many bytes of each are filled.
        self.lent: list[Sequence[tuple[int, int]]] = [()] * spec.size
        #: Descriptor of a buffer that the device has not used → port of its data, and bytes.
        self.data: dict[int, tuple[int, int]] = {}
        tables = -(-self.layout.end // 16) * 16
        #: Slot → position of the indirect table of a buffer that begins there.
        self.tables = {slot: tables + spec.table_size * i for i, slot in enumerate(self.slots)}
        self.ring.suppress_calls()

    @property
    def capacity(self) -> int:
        return self.slot_size * min(len(self.slots), self.parts)

    def room(self, header_size: int) -> int:
        """Return how many bytes of data fit in the free slots."""
        free = len(self.slots) - self.reserve
        return free * (self.slot_size - header_size) if free > 0 else 0

    def reclaim(self) -> bool:
        """Take back the slots that the device has used. Return True if there were any."""
        slots = self.slots
        before = len(slots)
        while (used := self.ring.pop_used()) is not None:
            self.data.pop(used[0], None)
            if self.awaited and used[0] in self.awaited:
                self.seen.append(self.awaited.pop(used[0]))
            for slot, size in self.lent[used[0]]:
                if self.zeroes:
                    self._zero(slot, size)
                slots.append(slot)
        return len(slots) > before

    def _zero(self, slot: int, size: int) -> None:
        self.memory[slot : slot + size] = _ZEROS[:size] if size <= _ZEROS_SIZE else bytes(size)

    def send(self, header: bytes, data: Buffer) -> tuple[int, int]:
        """Fill the next buffer; return its descriptor, and how much of the data it has."""
        taken = len(data)
        size = len(header) + taken
        if size > self.slot_size:
            data = memoryview(data)[: self.capacity - len(header)]
            taken = len(data)
            size = len(header) + taken
            if size > self.slot_size:
                return self._send_parts(header, data), taken
        slot = self.slots.pop()
        start = slot + len(header)
        self.memory[slot:start] = header
        self.memory[start : slot + size] = data
        head = self.ring.add(slot, size, writable=False)
        self.lent[head] = ((slot, size),)
        return head, taken

    def _send_parts(self, header: bytes, data: memoryview) -> int:
        parts = []
        slot, filled = self.slots.pop(), len(header)
        self.memory[slot : slot + filled] = header
        while True:
            step = min(self.slot_size - filled, len(data))
            self.memory[slot + filled : slot + filled + step] = data[:step]
            parts.append((slot, filled + step))
            data = data[step:]
            if not data:
                break
            slot, filled = self.slots.pop(), 0
        segments = [(slot, size, False) for slot, size in parts]
        head = self.ring.add_indirect(self.tables[parts[0][0]], segments)
        self.lent[head] = parts
        return head


Queues: TypeAlias = Mapping[int, ReceiveQueue | SendQueue]


def memory_for(specs: Iterable[QueueSpec]) -> int:
    """Return the bytes of DMA memory that queues need; many of them have the same shape."""
    count = Counter(specs)
    return sum(spec.memory * times for spec, times in count.items())


def lay_out(
    memory: DeviceMemory, specs: Mapping[int, QueueSpec], *, event_idx: bool = False
) -> Iterator[tuple[int, ReceiveQueue | SendQueue]]:
    """Make queues in `memory`, which has room for them, and yield each with its number."""
    places = memory.places(spec.memory for spec in specs.values())
    for (number, spec), (offset, base) in zip(specs.items(), places, strict=True):
        kind = SendQueue if number % 2 else ReceiveQueue
        yield number, kind(memory.view, offset, spec, base, event_idx)


async def set_up_queues(
    memory: DeviceMemory, specs: Mapping[int, QueueSpec], *, event_idx: bool = False
) -> Queues:
    """Make the queues as `lay_out` does. After each few, other tasks have a turn."""
    queues = {}
    for number, queue in lay_out(memory, specs, event_idx=event_idx):
        queues[number] = queue
        if len(queues) % _QUEUES_PER_TURN == 0:
            await trio.lowlevel.checkpoint()
    return queues

"""The guest end's link over virtqueues: buffers in DMA memory, lent to the device and got back.

Even queues are for receiving, odd ones for sending (both dialects, and the standard's control
queues). Each queue has a fixed set of slots in memory, at most one per descriptor: a receive
queue lends all of them to the device from the start, a sending queue fills one for each buffer.
Of the slots that are free, the one used last is filled first, so that memory that a quiet device
never needs is never touched. A sent slot of a queue that ports share is zeroed when we get it back,
and so never carries another port's bytes. A received slot stays with its descriptor for good.

On a queue that ports share, the last free slot is kept for control messages: an end that withholds
the other's buffers can always say why.

Nobody waits for a sent buffer to come back unless there is no room: a sending queue asks for
interrupts only then, and otherwise gets its slots back when it is looked at the next time, at the
latest for the next buffer. Where the device follows indirect tables, what fills several slots goes
out as one buffer.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from attrs import frozen

from vconfs.link.link import Link, call_soon
from vconfs.overrides import override
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer
from vconfs.protocol.virtqueue import DriverQueue, Layout

_PAGE = 4096
_ZEROS_SIZE = 1 << 19
_ZEROS = memoryview(bytes(_ZEROS_SIZE))
#: Received buffers of up to so many bytes are many.
_SMALL = 1 << 14
#: In the place of a received buffer that its owner keeps.
_KEPT = -1


@frozen
class QueueSpec:
    """How one queue is laid out: descriptors, bytes per slot, and slots.

    A queue may have fewer slots than descriptors; 0 means as many. What is sent in one buffer may
    fill up to `parts` slots; more than one needs INDIRECT_DESC. A queue is `shared` unless all its
    data is one port's.
    """

    size: int
    slot_size: int
    slots: int = 0
    parts: int = 1
    shared: bool = True

    @property
    def buffers(self) -> int:
        """How many slots the queue has."""
        return self.slots or self.size

    @property
    def table_size(self) -> int:
        """How many bytes an indirect table has; 0: there are none."""
        return 16 * self.parts if self.parts > 1 else 0

    @property
    def rings(self) -> int:
        """How many bytes the rings need, and an indirect table for each slot; whole pages."""
        tables = -(-Layout.at(self.size, 0).end // 16) * 16
        return _pages(tables + self.buffers * self.table_size)

    @property
    def memory(self) -> int:
        """How many bytes of DMA memory the queue needs, whole pages."""
        return self.rings + self.buffers * _pages(self.slot_size)


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


class _Queue:
    """One virtqueue and its slots."""

    def __init__(
        self, memory: memoryview, offset: int, spec: QueueSpec, base: int, event_idx: bool
    ) -> None:
        self.memory = memory
        self.layout = Layout.at(spec.size, offset)
        memory[offset : self.layout.end] = bytes(self.layout.end - offset)
        self.ring = DriverQueue(memory, self.layout, base=base, event_idx=event_idx)
        self.slot_size = spec.slot_size
        first = offset + spec.rings
        stride = _pages(spec.slot_size)
        self.slots = [first + stride * i for i in reversed(range(spec.buffers))]


class _ReceiveQueue(_Queue):
    def __init__(
        self, memory: memoryview, offset: int, spec: QueueSpec, base: int, event_idx: bool
    ) -> None:
        super().__init__(memory, offset, spec, base, event_idx)
        #: Descriptor -> its slot, once and for all.
        self.slot_of = [memory[:0]] * spec.size
        self.held: deque[int] = deque()  # descriptors whose bytes the owner still looks at
        self.kept = 0  # those that the owner keeps for longer: at most half of them
        self.kept_max = spec.buffers // 2
        self.withheld: list[int] = []  # those that the device gets back later
        for slot in reversed(self.slots):
            head = self.ring.add(slot, spec.slot_size, writable=True)
            self.slot_of[head] = memory[slot : slot + spec.slot_size]

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
        self.ring.offer_many((head,), self.slot_size)

    def withhold(self) -> None:
        head = self.held.popleft()
        if head != _KEPT:
            self.withheld.append(head)

    def release(self) -> None:
        heads, self.withheld = self.withheld, []
        self.ring.offer_many(heads, self.slot_size)

    def done(self, count: int) -> None:
        held = self.held
        heads = [held.popleft() for _ in range(count)]
        self.ring.offer_many([head for head in heads if head != _KEPT], self.slot_size)


class _SendQueue(_Queue):
    def __init__(
        self, memory: memoryview, offset: int, spec: QueueSpec, base: int, event_idx: bool
    ) -> None:
        super().__init__(memory, offset, spec, base, event_idx)
        self.parts = spec.parts
        self.shared = spec.shared
        #: Slots that data leaves for control messages.
        self.reserve = 1 if spec.shared and spec.buffers > 1 else 0
        #: Descriptor of a buffer -> whom to tell when the device has used it.
        self.awaited: dict[int, Callable[[], None]] = {}
        self.seen: list[Callable[[], None]] = []  # those who are to be told now
        #: Descriptor -> the slots of its buffer, and how many bytes of each are filled.
        self.lent: list[Sequence[tuple[int, int]]] = [()] * spec.size
        #: Descriptor of a buffer that the device has not used -> whose data it is, and how much.
        self.data: dict[int, tuple[int, int]] = {}
        tables = -(-self.layout.end // 16) * 16
        #: Slot -> where the indirect table is of a buffer that begins there.
        self.tables = {slot: tables + spec.table_size * i for i, slot in enumerate(self.slots)}
        self.ring.suppress_calls()

    @property
    def capacity(self) -> int:
        return self.slot_size * min(len(self.slots), self.parts)

    def room(self, header_size: int) -> int:
        """Return how many bytes of data fit in the free slots."""
        return max(0, len(self.slots) - self.reserve) * (self.slot_size - header_size)

    def reclaim(self) -> bool:
        """Keep the slots that the device has used; whether there were any."""
        slots = self.slots
        before = len(slots)
        while (used := self.ring.pop_used()) is not None:
            self.data.pop(used[0], None)
            if self.awaited and used[0] in self.awaited:
                self.seen.append(self.awaited.pop(used[0]))
            for slot, size in self.lent[used[0]]:
                if self.shared:
                    self._zero(slot, size)
                slots.append(slot)
        return len(slots) > before

    def _zero(self, slot: int, size: int) -> None:
        self.memory[slot : slot + size] = _ZEROS[:size] if size <= _ZEROS_SIZE else bytes(size)

    def send(self, header: bytes, data: Buffer) -> int:
        """Fill the next buffer; return its descriptor."""
        size = len(header) + len(data)
        if size > self.slot_size:
            return self._send_parts(header, memoryview(data))
        slot = self.slots.pop()
        start = slot + len(header)
        self.memory[slot:start] = header
        self.memory[start : slot + size] = data
        head = self.ring.add(slot, size, writable=False)
        self.lent[head] = ((slot, size),)
        return head

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


class RingLink(Link):
    """A link over virtqueues, seen by the driver.

    `kick(queue)` notifies the device; the transport calls `interrupt(queue)` when the device
    has used buffers of a queue, and `config_interrupt` when its config space changed. A device
    that breaks the rules of a ring is lost. `stop_device(patience)` makes the device leave the
    rings alone.
    """

    def __init__(
        self,
        memory: memoryview,
        queues: Mapping[int, QueueSpec],
        *,
        features: int,
        kick: Callable[[int], None],
        read_config: Callable[[], bytes],
        write_config: Callable[[int, Buffer], None] = lambda offset, data: None,
        base: int = 0,
        event_idx: bool = False,
        stop_device: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self.features = features
        self._kick = kick
        self._stop_device = stop_device
        self._read_config = read_config
        self._write_config = write_config
        self._dead = False
        self._failing = False
        self._receive: dict[int, _ReceiveQueue] = {}
        self._send: dict[int, _SendQueue] = {}
        #: Sending queues that asked for an interrupt and got slots back before it came.
        self._freed: set[int] = set()
        offset = 0
        for number, spec in queues.items():
            if number % 2:
                self._send[number] = _SendQueue(memory, offset, spec, base, event_idx)
            else:
                self._receive[number] = _ReceiveQueue(memory, offset, spec, base, event_idx)
            offset += spec.memory
        all_queues: dict[int, _Queue] = {**self._receive, **self._send}
        self._rings = {number: queue.ring for number, queue in all_queues.items()}
        self.in_flight = max(queues[number].memory for number in self._receive)

    def layout(self, queue: int) -> Layout:
        """Where the rings of `queue` lie in the memory."""
        found: _Queue = self._send[queue] if queue % 2 else self._receive[queue]
        return found.layout

    @property
    def config(self) -> bytes:
        """The device's config space as it is now."""
        return self._read_config()

    @override
    def write_config(self, offset: int, data: Buffer) -> None:
        if not self._dead:
            self._write_config(offset, data)

    def start(self) -> None:
        """Show the device the receive buffers; the rings are set up by now."""
        for queue in self._receive:
            self.flush(queue)

    def interrupt(self, queue: int) -> None:
        """The device has used buffers of `queue`."""
        if self._dead:
            return
        if queue % 2:
            self._send[queue].ring.suppress_calls()  # until there is no room again
            self._reclaim(queue)
            self._freed.discard(queue)
            self._tell_seen(queue)
            self.owner.room(queue)
        else:
            self.owner.received(queue)

    def interrupt_used(self, queues: Iterable[int]) -> None:
        """The device has used buffers of some of these queues: those that show it."""
        rings, freed = self._rings, self._freed
        for queue in [n for n in queues if rings[n].has_used() or n in freed]:
            self.interrupt(queue)

    def config_interrupt(self) -> None:
        """The device's config space has changed."""
        if not self._dead:
            self.owner.config_changed()

    def fail(self, reason: str) -> None:
        """Report to the owner that the device is lost; it may still receive what was sent."""
        if not (self._dead or self._failing):
            self._failing = True
            self.owner.lost(reason)
            self._dead = True

    def close(self) -> None:
        """Let go of the memory; only buffers that are held keep it for longer."""
        self._dead = True
        self._receive.clear()
        self._send.clear()
        self._rings.clear()

    @override
    def room_for(self, queue: int, header_size: int) -> int:
        return 0 if self._dead else self._send[queue].room(header_size)

    @override
    def find_room(self, queue: int, header_size: int) -> int:
        if self._dead:
            return 0
        found = self._send[queue]
        self._reclaim(queue)
        if len(found.slots) <= found.reserve:
            self._wait_for_slots(queue)
        return 0 if self._dead else found.room(header_size)

    @override
    def capacity(self, queue: int) -> int:
        return 0 if self._dead else self._send[queue].capacity

    @override
    def find_buffer(self, queue: int, wanted: int) -> int:
        if self._dead:
            return 0
        found = self._send[queue]
        if not found.slots:
            self._reclaim(queue)
        if not found.slots:
            self._wait_for_slots(queue)
        return 0 if self._dead else found.capacity

    @override
    def want_room(self, queue: int) -> None:
        if not self._dead:
            self._send[queue].ring.request_calls()

    @override
    def send(
        self,
        queue: int,
        header: bytes,
        data: Buffer,
        seen: Callable[[], None] | None = None,
        *,
        port_id: int | None = None,
    ) -> None:
        """The device has processed a buffer when it has used it."""
        found = self._send[queue]
        head = found.send(header, data)
        if port_id is not None:
            found.data[head] = port_id, len(data)
        if seen is not None:
            found.awaited[head] = seen
            found.ring.request_calls()

    @override
    def untaken(self) -> Mapping[int, int]:
        """Count what is in buffers that the device has not used."""
        untaken: Counter[int] = Counter()
        for number, queue in self._send.items():
            self._reclaim(number)
            for port_id, size in queue.data.values():
                untaken[port_id] += size
        return untaken

    @override
    async def leave(self, patience: float) -> None:
        """After this, the device will not use what it has not used yet."""
        stop, self._stop_device = self._stop_device, None
        if stop is not None and not self._dead:
            await stop(patience)

    @override
    def receive(self, queue: int) -> memoryview | None:
        buffers = self._receive_some(queue, 1)
        return buffers[0] if buffers else None

    @override
    def receive_many(self, queue: int, size: int) -> Sequence[memoryview]:
        """Large buffers come one by one, because the caller may `hold` each of them."""
        if self._dead:
            return ()
        slot_size = self._receive[queue].slot_size
        return self._receive_some(queue, 1 if slot_size > _SMALL else max(1, size // slot_size))

    def _receive_some(self, queue: int, most: int) -> Sequence[memoryview]:
        if self._dead:
            return ()
        try:
            return self._receive[queue].receive(most)
        except RemoteProtocolError as error:
            self.fail(f"queue {queue}: {error}")
            return ()

    @override
    def hold(self, queue: int) -> Callable[[], None] | None:
        """Keep at most half of the slots, so that the device can send into the others."""
        found = self._receive[queue]
        head = found.hold()
        if head is None:
            return None

        def give_back() -> None:
            found.give_back(head)
            self.flush(queue)

        return give_back

    @override
    def again(self, queue: int) -> None:
        call_soon(self.interrupt, queue)

    @override
    def done(self, queue: int) -> None:
        self._receive[queue].done(1)

    @override
    def withhold(self, queue: int) -> None:
        self._receive[queue].withhold()

    @override
    def release(self, queue: int) -> None:
        if not self._dead:
            self._receive[queue].release()
            self.flush(queue)

    @override
    def done_many(self, queue: int, count: int) -> None:
        self._receive[queue].done(count)

    @override
    def flush(self, queue: int) -> None:
        if not self._dead and self._rings[queue].publish():
            self._kick(queue)
            if queue % 2:
                self._reclaim(queue)  # what a device in this process has used by now

    def _wait_for_slots(self, queue: int) -> None:
        """Ask for an interrupt at the next used buffer, and take what was used meanwhile."""
        if not self._dead and self._send[queue].ring.request_calls():
            self._reclaim(queue)

    def _reclaim(self, queue: int) -> None:
        found = self._send[queue]
        try:
            freed = found.reclaim()
            if found.awaited and found.ring.request_calls():
                freed |= found.reclaim()
            if freed and found.ring.wants_calls:
                self._freed.add(queue)
        except RemoteProtocolError as error:
            self.fail(f"queue {queue}: {error}")
        if found.seen:
            call_soon(self._tell_seen, queue)

    def _tell_seen(self, queue: int) -> None:
        while not self._dead and (seen := self._send[queue].seen):
            seen.pop(0)()

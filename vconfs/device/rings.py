"""The guest end's link over virtqueues: buffers in DMA memory, lent to the device and got back.

Even queues are for receiving, odd ones for sending (both dialects, and the standard's control
queues). Each queue has a fixed set of slots in memory, at most one per descriptor: a receive
queue lends all of them to the device from the start, a sending queue fills one for each buffer.
Of the slots that are free, the one used last is filled first, so that memory that a quiet device
never needs is never touched. A sent slot is zeroed when the device has used it: it never carries
another port's bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

from vconfs.link import Link
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer
from vconfs.protocol.virtqueue import DriverQueue, Layout

_PAGE = 4096
_ZEROS_SIZE = 1 << 19
_ZEROS = memoryview(bytes(_ZEROS_SIZE))
#: In the place of a received slot that its owner keeps.
_KEPT = -1


@frozen
class QueueSpec:
    """How one queue is laid out: descriptors, bytes per buffer, and buffers.

    A queue may have fewer buffers than descriptors; 0 means as many.
    """

    size: int
    slot_size: int
    slots: int = 0

    @property
    def buffers(self) -> int:
        """How many buffers the queue has."""
        return self.slots or self.size

    @property
    def memory(self) -> int:
        """How many bytes of DMA memory the queue needs, whole pages."""
        rings = Layout.at(self.size, 0).end
        return _pages(rings) + self.buffers * _pages(self.slot_size)


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
        first = offset + _pages(self.layout.end - offset)
        stride = _pages(spec.slot_size)
        self.slots = [first + stride * i for i in reversed(range(spec.buffers))]
        #: Descriptor -> where its slot is, and how many bytes of it are filled.
        self.lent: list[tuple[int, int]] = [(0, 0)] * spec.size


class _ReceiveQueue(_Queue):
    def __init__(
        self, memory: memoryview, offset: int, spec: QueueSpec, base: int, event_idx: bool
    ) -> None:
        super().__init__(memory, offset, spec, base, event_idx)
        self.held: deque[int] = deque()  # slots whose bytes the owner still looks at
        self.kept = 0  # slots that the owner keeps for longer: at most half of them
        self.kept_max = spec.buffers // 2
        while self.slots:
            self._lend(self.slots.pop())

    def receive(self) -> memoryview | None:
        used = self.ring.pop_used()
        if used is None:
            return None
        head, written = used
        slot = self.lent[head][0]
        self.held.append(slot)
        return self.memory[slot : slot + written]

    def hold(self) -> int | None:
        if self.kept >= self.kept_max:
            return None
        self.kept += 1
        slot, self.held[-1] = self.held[-1], _KEPT
        return slot

    def give_back(self, slot: int) -> None:
        self.kept -= 1
        self._lend(slot)

    def done(self) -> None:
        slot = self.held.popleft()
        if slot != _KEPT:
            self._lend(slot)

    def _lend(self, slot: int) -> None:
        self.lent[self.ring.add(slot, self.slot_size, writable=True)] = (slot, 0)


class _SendQueue(_Queue):
    def reclaim(self) -> bool:
        """Zero and keep the slots that the device has used; whether there were any."""
        memory, slots = self.memory, self.slots
        before = len(slots)
        while (used := self.ring.pop_used()) is not None:
            slot, size = self.lent[used[0]]
            memory[slot : slot + size] = _ZEROS[:size] if size <= _ZEROS_SIZE else bytes(size)
            slots.append(slot)
        return len(slots) > before

    def send(self, header: bytes, data: Buffer) -> None:
        slot = self.slots.pop()
        start = slot + len(header)
        end = start + len(data)
        self.memory[slot:start] = header
        self.memory[start:end] = data
        head = self.ring.add(slot, end - slot, writable=False)
        self.lent[head] = (slot, end - slot)


class RingLink(Link):
    """A link over virtqueues, seen by the driver.

    `kick(queue)` notifies the device; the transport calls `interrupt(queue)` when the device
    has used buffers of a queue, and `config_interrupt` when its config space changed. A device
    that breaks the rules of a ring is lost.
    """

    def __init__(
        self,
        memory: memoryview,
        queues: Mapping[int, QueueSpec],
        *,
        features: int,
        kick: Callable[[int], None],
        read_config: Callable[[], bytes],
        base: int = 0,
        event_idx: bool = False,
    ) -> None:
        self.features = features
        self._kick = kick
        self._read_config = read_config
        self._dead = False
        self._receive: dict[int, _ReceiveQueue] = {}
        self._send: dict[int, _SendQueue] = {}
        #: Sending queues whose slots have come back since the owner was last told of room.
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

    def start(self) -> None:
        """Show the device the receive buffers; the rings are set up by now."""
        for queue in self._receive:
            self.flush(queue)

    def interrupt(self, queue: int) -> None:
        """The device has used buffers of `queue`."""
        if self._dead:
            return
        try:
            if queue % 2:
                self._send[queue].reclaim()
                self._freed.discard(queue)
                self.owner.room(queue)
            else:
                self.owner.received(queue)
        except RemoteProtocolError as error:
            self.fail(f"queue {queue}: {error}")

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
        """Give the device up."""
        if not self._dead:
            self._dead = True
            self.owner.lost(reason)

    def room_for(self, queue: int, header_size: int) -> int:
        """See `Link.room_for`."""
        found = self._send[queue]
        if not self._reclaim(queue):
            return 0
        return len(found.slots) * (found.slot_size - header_size)

    def capacity(self, queue: int) -> int:
        """See `Link.capacity`."""
        found = self._send[queue]
        return found.slot_size if (found.slots or self._reclaim(queue)) and not self._dead else 0

    def send(self, queue: int, header: bytes, data: Buffer) -> None:
        """See `Link.send`."""
        self._send[queue].send(header, data)

    def receive(self, queue: int) -> memoryview | None:
        """See `Link.receive`."""
        return None if self._dead else self._receive[queue].receive()

    def hold(self, queue: int) -> Callable[[], None] | None:
        """See `Link.hold`; others always find half of the slots to send into."""
        found = self._receive[queue]
        slot = found.hold()
        if slot is None:
            return None

        def give_back() -> None:
            found.give_back(slot)
            self.flush(queue)

        return give_back

    def done(self, queue: int) -> None:
        """See `Link.done`."""
        self._receive[queue].done()

    def flush(self, queue: int) -> None:
        """See `Link.flush`."""
        found: _Queue = self._send[queue] if queue % 2 else self._receive[queue]
        if found.ring.publish() and not self._dead:
            self._kick(queue)

    def _reclaim(self, queue: int) -> bool:
        """Get used slots back; whether there is any free slot."""
        found = self._send[queue]
        if self._dead:
            return False
        try:
            if found.reclaim():
                self._freed.add(queue)
        except RemoteProtocolError as error:
            self.fail(f"queue {queue}: {error}")
            return False
        return bool(found.slots)

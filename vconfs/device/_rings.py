"""The guest end's link over virtqueues: buffers in DMA memory that are lent to the device.

Even queues are for receiving, odd ones for sending (both dialects, and the standard's control
queues). Each queue has a fixed set of slots in memory, at most one per descriptor: a receive
queue lends all of them to the device from the start, a sending queue fills one for each buffer.
The free slot that was used last is filled first, so that a quiet device touches little memory. A
sent slot of a queue that ports share is zeroed when it comes back, so it never carries another
port's bytes to another process. A received slot belongs to the same descriptor for ever.

On a queue that ports share, the last free slot is kept for control messages. So an end that
withholds the other end's buffers can always send the reason.

A sending queue asks for interrupts only when it has no room. Otherwise it collects used buffers the
next time that it is looked at, at the latest for the next buffer. If the device can follow indirect
tables, data that fills several slots is sent as one buffer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from math import inf
from typing import Final

import trio
from attrs import define

from vconfs.device._slots import Queues, ReceiveQueue, SendQueue, SlotQueue
from vconfs.link.busy_polling import SHARED, Looks
from vconfs.link.byte_queue import Lent
from vconfs.link.link import Link, call_soon
from vconfs.overrides import override
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer
from vconfs.protocol.virtqueue import Layout
from vconfs.system.tasks import soon_in_portions

#: Up to this slot size, several received buffers are taken per call.
_SMALL = 1 << 14
#: How many queues with used buffers are handled in one turn of the event loop. A queue of a port
#: may hold a MiB.
_INTERRUPTS: Final = 32


def _kick_nothing(queue: int) -> None:
    """Do nothing: the device uses the rings no more."""


@define(eq=False)
class _Held:
    """A received buffer that its reader keeps."""

    link: RingLink
    number: int
    queue: ReceiveQueue
    head: int

    def give_back(self) -> None:
        self.queue.give_back(self.head)

    def flush(self) -> None:
        self.link.flush(self.number)


class RingLink(Link):
    """A link over virtqueues, seen by the driver. `queues` are those of `set_up_queues`.

    `kick(queue)` notifies the device; the transport calls `interrupt(queue)` when the device
    has used buffers of a queue, and `config_interrupt` when its config space changed. A device
    that breaks the rules of a ring is lost. `stop_device(patience)` makes the device leave the
    rings alone. `device_beside` says that the device is another process, which can send while we
    look again.
    """

    def __init__(
        self,
        queues: Queues,
        *,
        features: int,
        kick: Callable[[int], None],
        read_config: Callable[[], bytes],
        write_config: Callable[[int, Buffer], None] = lambda offset, data: None,
        stop_device: Callable[[float], Awaitable[None]] | None = None,
        device_beside: bool = False,
    ) -> None:
        self.features = features
        self._kick = kick
        self._stop_device = stop_device
        self._read_config = read_config
        self._write_config = write_config
        self._device_beside = device_beside
        self._came = 0  # bytes received since `look_again`, headers included
        #: Tests replace it.
        self.looks: Looks = Looks(SHARED)
        self._dead = False
        self._closed = False
        self._failing = False
        self._receive: dict[int, ReceiveQueue] = {}
        self._send: dict[int, SendQueue] = {}
        #: Sending queues that asked for an interrupt and got slots back before it came.
        self._freed: set[int] = set()
        #: Queues whose used buffers wait for the next turn, in order.
        self._interrupted: dict[int, None] = {}
        for number, queue in queues.items():
            if isinstance(queue, SendQueue):
                self._send[number] = queue
            else:
                self._receive[number] = queue
        self._rings = {number: queue.ring for number, queue in queues.items()}
        self.in_flight = max(queue.size for queue in self._receive.values())

    def layout(self, queue: int) -> Layout:
        """Return the positions of the rings of `queue` in the memory."""
        found: SlotQueue = self._send[queue] if queue % 2 else self._receive[queue]
        return found.layout

    def base(self, queue: int) -> int:
        """Return what to add to positions of `queue` for the device's addresses."""
        found: SlotQueue = self._send[queue] if queue % 2 else self._receive[queue]
        return found.base

    @property
    @override
    def config(self) -> bytes:
        return self._read_config()

    @override
    def write_config(self, offset: int, data: Buffer) -> None:
        if not self._dead:
            self._write_config(offset, data)

    @override
    def start(self) -> None:
        """Offer the receive buffers to the device, which has set up the rings."""
        soon_in_portions(self.flush, self._receive)

    def interrupt(self, queue: int) -> None:
        """Handle the device's interrupt: it has used buffers of `queue`."""
        if self._dead:
            return
        if queue % 2:
            self._send[queue].ring.suppress_calls()  # until there is no room again
            self._take_back(queue)
            self._freed.discard(queue)
            self._tell_seen(queue)
            self.owner.room(queue)
        else:
            self.owner.received(queue)

    def interrupt_used(self, queues: Iterable[int]) -> None:
        """Handle an interrupt that several queues share: find those with used buffers.

        If they are many, some are handled in later turns.
        """
        rings, freed = self._rings, self._freed
        found = (n for n in queues if rings[n].has_used() or n in freed)
        self._interrupted.update(dict.fromkeys(found))
        self._take_interrupts()

    def _take_interrupts(self) -> None:
        for queue in tuple(islice(self._interrupted, _INTERRUPTS)):
            del self._interrupted[queue]
            self.interrupt(queue)
        if self._interrupted and not self._dead:
            with suppress(trio.RunFinishedError):
                trio.lowlevel.current_trio_token().run_sync_soon(
                    self._take_interrupts, idempotent=True
                )

    def config_interrupt(self) -> None:
        """Handle a change of the device's config space."""
        if not self._dead:
            self.owner.config_changed()

    def fail(self, reason: str) -> None:
        """Report to the owner that the device is lost.

        Until `close`, it may still receive what was sent.
        """
        if not (self._dead or self._failing):
            self._failing = True
            self.owner.lost(reason)
            self._dead = True

    def close(self) -> None:
        """Release the memory, except buffers that are still held."""
        self._dead = self._closed = True
        self._receive.clear()
        self._send.clear()
        self._rings.clear()
        self._interrupted.clear()

    @override
    def room_for(self, queue: int, header_size: int) -> int:
        return 0 if self._dead else self._send[queue].room(header_size)

    @override
    def find_room(self, queue: int, header_size: int) -> int:
        if self._dead:
            return 0
        found = self._send[queue]
        if len(found.slots) < found.buffers:
            self._reclaim(queue)
        room = found.room(header_size)
        if not room:
            self._wait_for_slots(queue)
            room = found.room(header_size)
        return 0 if self._dead else room

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
        if not self._dead and self._send[queue].ring.request_calls():
            call_soon(self.interrupt, queue)  # there is no interrupt for these

    @override
    def send(
        self,
        queue: int,
        header: bytes,
        data: Buffer,
        seen: Callable[[], None] | None = None,
        *,
        port_id: int | None = None,
    ) -> int:
        """The device has processed a buffer when it has used it."""
        found = self._send[queue]
        head, taken = found.send(header, data)
        if port_id is not None:
            found.data[head] = port_id, taken
        if seen is not None:
            found.awaited[head] = seen
            found.ring.request_calls()
        return taken

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
            self._kick = _kick_nothing

    @override
    def receive(self, queue: int) -> memoryview | None:
        if self._closed:
            return None
        try:
            buffer = self._receive[queue].receive_one()
        except RemoteProtocolError as error:
            self.fail(f"queue {queue}: {error}")
            return None
        if buffer is not None:
            self._came += len(buffer)
        return buffer

    @override
    def look_again(self, queue: int) -> bool:
        """Look for as long as the device is busy, and request no interrupts meanwhile."""
        came, self._came = self._came, 0
        if self._dead or not self._device_beside or queue not in self._receive:
            return False
        if not self.looks.begin(came, inf):  # a read waits, so only the deadline ends them
            return False
        ring = self._receive[queue].ring
        ring.suppress_calls()
        while not ring.has_used() and self.looks.again(found=False):
            pass
        if not ring.request_calls():
            return False
        self.looks.found()
        self.interrupt(queue)
        return True

    @override
    def receive_many(self, queue: int, size: int) -> Sequence[memoryview]:
        """Large buffers come one by one, because the caller may `hold` each of them."""
        if self._closed:
            return ()
        found = self._receive[queue]
        if found.slot_size > _SMALL:
            return super().receive_many(queue, size)
        try:
            buffers = found.receive(max(1, size // found.slot_size))
        except RemoteProtocolError as error:
            self.fail(f"queue {queue}: {error}")
            return ()
        self._came += sum(map(len, buffers))
        return buffers

    @override
    def hold(self, queue: int) -> Lent | None:
        """Keep at most half of the slots, so that the device can send into the others."""
        found = self._receive[queue]
        head = found.hold()
        return None if head is None else _Held(self, queue, found, head)

    @override
    def again(self, queue: int) -> None:
        call_soon(self.interrupt, queue)

    @override
    def done(self, queue: int) -> None:
        self._receive[queue].done_one()

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
        if self._dead:
            return
        if kicks := self._rings[queue].publish():
            self._kick(queue)
        if queue % 2 and (kicks or self._send[queue].awaited):
            # A device in this process has used some by now. And an interrupt that was requested
            # counts from the buffers that we have taken back: it comes only if these are all.
            self._reclaim(queue)

    def _wait_for_slots(self, queue: int) -> None:
        """Ask for an interrupt at the next used buffer, and take what was used meanwhile."""
        if not self._dead and self._send[queue].ring.request_calls():
            self._reclaim(queue)

    def _reclaim(self, queue: int) -> None:
        """Take back used buffers; tell soon of messages that the device has seen."""
        found = self._send[queue]
        self._take_back(queue)
        if found.seen:
            call_soon(self._tell_seen, queue)

    def _take_back(self, queue: int) -> None:
        found = self._send[queue]
        try:
            freed = found.reclaim()
            if found.awaited and found.ring.request_calls():
                freed |= found.reclaim()
            if freed and found.ring.wants_calls:
                self._freed.add(queue)
        except RemoteProtocolError as error:
            self.fail(f"queue {queue}: {error}")

    def _tell_seen(self, queue: int) -> None:
        while not self._dead and (seen := self._send[queue].seen):
            seen.pop(0)()

"""The host end's link over virtqueues: the same rings as the driver's, seen by the device.

Even queues carry what we send, in empty buffers that the guest has put there. Odd queues carry
what the guest sent. Nothing in the rings is trusted; a guest that breaks their rules is lost.

The cost of a buffer depends on its parts as much as on its bytes, and a ring can hold 32768
buffers of up to 1024 parts. So both bound what is done in one turn of the event loop (see
`Effort`), and no more empty buffers are taken than one burst of sending fills.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final

from vconfs.link.busy_polling import PATIENCE, SHARED, Looks
from vconfs.link.effort import BUFFER, PART, Effort
from vconfs.link.link import Link, call_soon
from vconfs.overrides import override
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer
from vconfs.protocol.virtqueue import Chain, DeviceQueue

#: The largest buffer that a guest may send; a larger one is refused rather than copied together.
BUFFER_MAX: Final = 4 << 20
#: The size of a guest's largest buffers in practice; a ring full of these may be under way.
_BUFFER_USUAL: Final = 1 << 18
#: Empty buffers are taken until they have this many bytes, or consist of this many parts.
_OFFERED_BYTES: Final = 2 << 20
_OFFERED_PARTS: Final = 256


class _Offered:
    """Empty buffers of the guest that were taken from a queue, for us to fill."""

    def __init__(self, ring: DeviceQueue) -> None:
        self.ring = ring
        self.chains: deque[Chain] = deque()
        self.bytes = 0
        self._parts = 0

    def collect(self, header_size: int, effort: Effort) -> None:
        """Take some more buffers, if there are not enough."""
        for _ in range(self.ring.size):  # bounded: a guest may go on offering useless ones
            if self.bytes >= _OFFERED_BYTES or self._parts >= _OFFERED_PARTS or effort.is_spent:
                return
            chain = self.ring.pop()
            if chain is None:
                return
            effort.spend(BUFFER + chain.parts * PART)
            if chain.writable_length <= header_size:
                self.ring.push(chain.head, 0)  # useless: not even a byte fits
                continue
            self.chains.append(chain)
            self.bytes += chain.writable_length
            self._parts += chain.parts

    def room(self, header_size: int) -> int:
        """Return how many bytes of data fit in these buffers."""
        return self.bytes - header_size * len(self.chains)

    def fill(self, header: bytes, data: Buffer) -> tuple[int, int]:
        """Fill the next buffer and push it; return its head, and how much of the data it has."""
        chain = self.chains.popleft()
        self.bytes -= chain.writable_length
        self._parts -= chain.parts
        data = memoryview(data)[: chain.writable_length - len(header)]
        taken = len(data)
        size = len(header) + taken
        first = chain.writable[0]
        if size <= len(first):
            first[: len(header)] = header
            first[len(header) : size] = data
        else:
            _scatter(chain.writable, header + bytes(data))
        self.ring.push(chain.head, size)
        return chain.head, taken


def _scatter(segments: list[memoryview], data: bytes) -> None:
    start = 0
    for segment in segments:
        step = min(len(segment), len(data) - start)
        segment[:step] = data[start : start + step]
        start += step


class DeviceLink(Link):
    """A link over virtqueues, seen by the device.

    `call(queue)` interrupts the driver; the transport calls `kicked(queue)` when the driver has
    put buffers into a queue. `header_size` is the size of the header before data: a buffer of the
    guest that is not larger goes back empty. Queues can be started and stopped; on a stopped queue
    nothing is received, and nothing can be sent.
    """

    def __init__(
        self,
        queues: Mapping[int, DeviceQueue],
        *,
        features: int,
        call: Callable[[int], None],
        header_size: int,
    ) -> None:
        self.features = features
        self.in_flight: int = 0
        self._call = call
        self._header_size = header_size
        self._dead = False
        self._failing = False
        self._queues: dict[int, DeviceQueue] = {}
        self._offered: dict[int, _Offered] = {}
        self._received: dict[int, deque[int]] = {}
        self._withheld: dict[int, list[int]] = {}
        #: By queue: the head of a buffer → what to call when the guest offers the buffer again.
        self._awaited: dict[int, dict[int, Callable[[], None]]] = {}
        self._seen: list[Callable[[], None]] = []  # what to call now
        self._effort = Effort(self._go_on)
        self._moved = 0  # bytes sent and received, headers included
        self._came = 0  # those of them that were received
        #: Tests replace it.
        self.looks: Looks = Looks(SHARED)
        #: Queues to look at in the next turn; first those that got nothing of this turn.
        self._put_off: dict[int, None] = {}
        for number, ring in queues.items():
            self.start_queue(number, ring)

    def start_queue(self, queue: int, ring: DeviceQueue) -> None:
        """Serve a queue from now on; what is already in it is taken at `kicked`."""
        self._queues[queue] = ring
        if queue % 2:
            self._received[queue] = deque()
            self._withheld[queue] = []
            self.in_flight = max(self.in_flight, ring.size * _BUFFER_USUAL)
        else:
            self._offered[queue] = _Offered(ring)
            self._awaited[queue] = {}
            ring.suppress_kicks()  # until a sender finds no buffer: see `want_room`

    def stop_queue(self, queue: int) -> int:
        """Stop serving a queue; return the entry of its available ring to resume at."""
        self.release(queue)
        awaited = self._awaited.pop(queue, {})
        ring = self._queues.pop(queue)
        for kept in (self._offered, self._received, self._withheld):
            kept.pop(queue, None)
        for seen in awaited.values():
            seen()  # a guest that stops a queue has taken what was sent on it
        return ring.next_avail

    @property
    @override
    def is_spent(self) -> bool:
        return self._effort.is_spent

    @property
    @override
    def config(self) -> bytes:
        """Empty, because the config space is on this end."""
        return b""

    def kicked(self, queue: int) -> None:
        """Look at `queue`, into which the driver has put buffers."""
        if self._dead:
            return
        if queue % 2:
            self.owner.received(queue)
        else:
            self._offered[queue].ring.suppress_kicks()
            self._tell_seen(queue)
            self.owner.room(queue)

    def kicked_all(self, queues: Sequence[int]) -> None:
        """Look at several queues, and again while the guest is busy: see `Looks`."""
        sending = [queue for queue in queues if queue % 2 and queue in self._queues]
        for queue in sending:
            self._queues[queue].suppress_kicks()
        polling = self.looks.polling
        polling.others_wait = False
        came, moved = self._came, self._move(queues)
        # We are patient with a guest that sends. If we send, a chardev may have more for it.
        is_patient = self._came > came and not polling.others_wait
        self.looks.begin(moved, PATIENCE if is_patient else 0.0)
        while self.looks.again(found=moved > 0):
            moved = self._move([queue for queue in queues if self.arrived(queue)])
        for queue in sending:
            if queue in self._queues and self._queues[queue].request_kicks():
                self.kicked(queue)  # a buffer came before we asked for kicks

    def _move(self, queues: Iterable[int]) -> int:
        """Look at queues once, and return how many bytes went in or out, headers included."""
        before = self._moved
        for queue in queues:
            if queue in self._queues:
                self.kicked(queue)
        return self._moved - before

    def fail(self, reason: str) -> None:
        """Report to the owner that the guest is lost; it may still receive what was sent."""
        if not (self._dead or self._failing):
            self._failing = True
            self.owner.lost(reason)
            self._dead = True

    @override
    def room_for(self, queue: int, header_size: int) -> int:
        offered = self._offered.get(queue)
        return 0 if offered is None or self._dead else offered.room(header_size)

    @override
    def find_room(self, queue: int, header_size: int) -> int:
        self._collect(queue)
        offered = self._offered.get(queue)
        return 0 if offered is None or self._dead else offered.room(header_size)

    @override
    def find_buffer(self, queue: int, wanted: int) -> int:
        offered = self._offered.get(queue)
        if offered is not None and not offered.chains:
            self._collect(queue)
        if offered is None or not offered.chains or self._dead:
            return 0
        return offered.chains[0].writable_length

    @override
    def want_room(self, queue: int) -> None:
        if (offered := self._offered.get(queue)) is not None:
            offered.ring.request_kicks()

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
        """The guest has processed a buffer when it offers it again."""
        offered = self._offered[queue]
        head, taken = offered.fill(header, data)
        self._moved += len(header) + taken
        if seen is not None:
            self._note_seen(queue)  # for an earlier message in this same buffer
            if self._seen:
                call_soon(self._tell_seen, queue)
            self._awaited[queue][head] = seen
            offered.ring.watch(head)
        return taken

    @override
    def receive(self, queue: int) -> memoryview | None:
        ring = self._queues.get(queue)
        if self._dead or ring is None:
            return None
        if self._effort.is_spent:
            self._put_off[queue] = None
            return None
        try:
            chain = ring.pop()
        except RemoteProtocolError as error:
            self.fail(f"queue {queue}: {error}")
            return None
        if chain is None:
            return None
        size = chain.readable_length
        if size > BUFFER_MAX:
            self.fail(f"queue {queue}: a buffer of {size} bytes is larger than {BUFFER_MAX}")
            return None
        self._effort.spend(BUFFER + chain.parts * PART + size)
        self._moved += size
        self._came += size
        self._received[queue].append(chain.head)
        if len(chain.readable) == 1:
            return chain.readable[0]
        return memoryview(b"".join(chain.readable))

    @override
    def arrived(self, queue: int) -> int:
        ring = self._queues.get(queue)
        return 0 if self._dead or ring is None else ring.available

    @override
    def taking_last(self) -> AbstractContextManager[None]:
        return self._effort.extended()

    @override
    def again(self, queue: int) -> None:
        call_soon(self.kicked, queue)

    @override
    def done(self, queue: int) -> None:
        self._queues[queue].push(self._received[queue].popleft(), 0)

    @override
    def withhold(self, queue: int) -> None:
        self._withheld[queue].append(self._received[queue].popleft())

    @override
    def release(self, queue: int) -> None:
        if withheld := self._withheld.get(queue):
            self._withheld[queue] = []
            for head in withheld:
                self._queues[queue].push(head, 0)
        self.flush(queue)

    @override
    def flush(self, queue: int) -> None:
        ring = self._queues.get(queue)
        if ring is not None and ring.publish() and not self._dead:
            self._call(queue)

    def _tell_seen(self, queue: int) -> None:
        if self._dead:
            return
        if queue in self._awaited:
            self._note_seen(queue)
        while self._seen:
            self._seen.pop(0)()

    def _note_seen(self, queue: int) -> None:
        awaited = self._awaited[queue]
        self._seen += [awaited.pop(head) for head in self._queues[queue].returned()]

    def _collect(self, queue: int) -> None:
        """Take more empty buffers of the guest; ask for a kick if there are none."""
        offered = self._offered.get(queue)
        if offered is None or self._dead:
            return
        try:
            offered.collect(self._header_size, self._effort)
            if not offered.chains and offered.ring.request_kicks():
                offered.collect(self._header_size, self._effort)
        except RemoteProtocolError as error:
            self.fail(f"queue {queue}: {error}")
            return
        if not offered.chains and self._effort.is_spent:
            self._put_off[queue] = None

    def _go_on(self) -> None:
        """Do the work that was too much for the last turn."""
        rest, self._put_off = deque(self._put_off), {}
        while rest and not self._effort.is_spent:
            if (queue := rest.popleft()) in self._queues:
                self.kicked(queue)
        self._put_off = dict.fromkeys(rest) | self._put_off

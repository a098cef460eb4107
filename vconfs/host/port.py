"""A port of the host end: the queue between the guest and a chardev, and its throttling.

What the guest sends waits in the `HostInbox` until the chardev takes it. In the other direction
nothing waits here: when the guest throttles the port or has no buffers, `send` waits, and so does
the program behind the chardev.

Every byte from the guest is in the queue, in the chardev's hand (received, and neither delivered
nor put back), delivered or dropped; see draining.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio
from attrs import Attribute, define, field, frozen
from trio.lowlevel import ParkingLot

from vconfs.host._inbox import HostCounters, HostInbox, HostPortLine
from vconfs.host._messages import MessageQueue
from vconfs.host.chardev import Chardev, PortSide, ServeAsFile
from vconfs.link.busy_polling import SHARED
from vconfs.link.draining import DRAIN_TIME
from vconfs.link.taps import PortTap
from vconfs.overrides import override
from vconfs.protocol.events import Buffer

__all__ = ["DEFAULT_HOST_LIMIT", "HostPort", "HostPortLine", "HostPortSpec"]

DEFAULT_HOST_LIMIT = 1 << 20
#: How many sessions (an open and a close of the guest) wait for a busy chardev at most.
_SESSIONS_MAX = 1000
#: How many bytes a `source` may supply before other ports have their turn.
_SOURCE_SHARE = 768 << 10


@frozen
class HostPortSpec:
    """The settings of a port of the host end: NAME=CHARDEV and its options."""

    name: bytes
    chardev: Chardev
    id: int | None = None  # None: the lowest free id
    console: bool = False
    cache: bool = False
    limit: int = 0  # MiB of unread data that the guest may keep; 0: the guest decides
    host_limit: int = DEFAULT_HOST_LIMIT  # bytes of guest data kept for the chardev
    chardev_text: str = ""  # how the chardev was written


def _time_throttling(port: HostPort, _: Attribute[bool], throttled: bool) -> bool:
    """Measure for how long the guest throttles the port."""
    port.counters.guest_throttled.set(throttled)
    return throttled


def _client_changes(port: HostPort, _: Attribute[object], value: object) -> object:
    """Wake the tasks that wait for the present client to be hung up."""
    port._hung_up.unpark_all()
    return value


@define(eq=False)
class HostPort(PortSide):
    """One port of the host end; it is the `PortSide` of its chardev."""

    id: int
    spec: HostPortSpec
    patience: float = DRAIN_TIME
    name: bytes = field(init=False)
    cache: bool = field(init=False)
    limit: int = field(init=False)
    size: tuple[int, int] = field(init=False, default=(0, 0))

    connected: bool = field(init=False, default=False)
    #: True while the guest wants no more.
    guest_throttled: bool = field(init=False, default=False, on_setattr=_time_throttling)
    counters: HostCounters = field(init=False, factory=HostCounters)
    sink: Callable[[memoryview], int] | None = field(init=False, default=None)
    source: Callable[[int], Buffer] | None = field(init=False, default=None)
    hang_up_client: Callable[[], None] | None = field(
        init=False, default=None, on_setattr=_client_changes
    )
    reopen: Callable[[], None] | None = field(init=False, default=None)
    unread: Callable[[], int] | None = field(init=False, default=None)
    on_resize: Callable[[], None] = field(init=False, default=lambda: None)
    #: Called when the guest or the user has changed the port, and when there is room to send again.
    on_change: Callable[[], None] = field(init=False, default=lambda: None)
    on_room: Callable[[], None] = field(init=False, default=lambda: None)
    as_file: ServeAsFile | None = field(init=False, default=None)
    #: Returns how many bytes the `sink` has taken and keeps for the far side, if it keeps any.
    kept: Callable[[], int] = field(init=False, default=lambda: 0)
    ended: trio.Event = field(init=False, factory=trio.Event)  # set when the chardev has ended
    removed: bool = field(init=False, default=False)
    tap: PortTap | None = field(init=False, default=None)  # if the port is watched

    _inbox: HostInbox = field(init=False)
    _guest_connected: bool = field(init=False, default=False)
    #: How often the guest has opened the port without the chardev having been told.
    _sessions: int = field(init=False, default=0)
    #: Bytes of the chardev that `send` has not sent yet.
    _unsent: int = field(init=False, default=0)
    #: True if an ending has begun.
    _ending: bool = field(init=False, default=False)
    #: True if no `go_on` will follow the ending.
    _is_final: bool = field(init=False, default=False)
    #: True if the ending no longer listens to the far side.
    _stopped_listening: bool = field(init=False, default=False)
    _listening: set[trio.CancelScope] = field(init=False, factory=set)
    _arrived: ParkingLot = field(init=False, factory=ParkingLot)
    _changed: ParkingLot = field(init=False, factory=ParkingLot)
    _hung_up: ParkingLot = field(init=False, factory=ParkingLot)

    def __attrs_post_init__(self) -> None:
        self.name, self.cache, self.limit = self.spec.name, self.spec.cache, self.spec.limit
        messages = MessageQueue() if self.spec.chardev.keeps_boundaries else None
        self._inbox = HostInbox(self.id, self.spec.host_limit, self.counters, messages)

    @property
    def attached(self) -> bool:
        """True if there is a guest that has the port."""
        return self.line is not None

    @property
    @override
    def guest_connected(self) -> bool:
        return self._guest_connected

    @property
    @override
    def console(self) -> bool:
        return self.spec.console

    @property
    def host_throttled(self) -> bool:
        """True if the guest was asked to stop sending."""
        return self._inbox.is_throttling

    @property
    def throttled_by_hand(self) -> bool:
        """True if the guest is told to stop whatever is queued; see `throttle_by_hand`."""
        return self._inbox.held_by_hand

    @property
    def queued(self) -> int:
        """Bytes that the far side has not taken yet."""
        return self._inbox.size + self.kept()

    @property
    def delivered_bytes(self) -> int:
        """The number of bytes from the guest that the far side has."""
        return self._inbox.delivered_bytes - self.kept()

    @property
    def wants_data(self) -> bool:
        """True if there is space for more from the guest (for links that throttle by rings)."""
        return self._inbox.wants_data

    @property
    def line(self) -> HostPortLine | None:
        """The way to the guest that has the port, if there is one."""
        return self._inbox.line

    # --- what the chardev does ------------------------------------------------------------

    @override
    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            self.counters.connects += 1
            self._tell_tap("connect")
            if self.line is not None:
                self.line.open_port(self.id, True)
            self.pump()

    @override
    def disconnect(self) -> None:
        if self.connected:
            self.connected = False
            self._tell_tap("disconnect")
            if self.line is not None:
                self.line.open_port(self.id, False)
            self._inbox.drop_in_hand()
            if not self.cache:
                self._inbox.drop()

    @override
    def hang_up(self) -> None:
        if self.connected and self.line is not None:
            self._tell_tap("disconnect")
            self._tell_tap("connect")
            self.line.open_port(self.id, False)
            self.line.open_port(self.id, True)

    @override
    def resize(self, cols: int, rows: int) -> None:
        self.size = (cols, rows)
        self.on_resize()

    @override
    async def next_session(self) -> None:
        while not self._sessions:
            await self._changed.park()
        self._sessions -= 1

    @override
    async def receive(self, size: int = 1 << 16) -> bytes:
        inbox = self._inbox
        inbox.delivered(inbox.in_hand)
        while not inbox.queue.size and not inbox.queue.at_mark:
            await self._arrived.park()
        return inbox.take(size)

    @override
    async def wait_for_data(self) -> None:
        while not self._inbox.queue.size:
            await self._arrived.park()

    @override
    def peek(self, size: int) -> Sequence[Buffer]:
        return self._inbox.queue.peek(size)

    @override
    def took(self, size: int) -> None:
        self._inbox.took_first(size)

    @override
    async def receive_message(self) -> bytes:
        inbox, messages = self._inbox, self._inbox.messages
        assert messages is not None, "the chardev did not say that it keeps boundaries"
        inbox.delivered(inbox.in_hand)
        while not messages.whole:
            await self._arrived.park()
        return inbox.take_message()

    @override
    def delivered(self, size: int) -> None:
        self._inbox.delivered(size)

    @override
    def lost(self, size: int) -> None:
        self._inbox.delivered_bytes -= size
        self.counters.dropped += size

    @override
    def put_back(self, data: Buffer) -> None:
        self._inbox.put_back(data)

    @override
    async def send(self, data: Buffer) -> None:
        rest = memoryview(data)
        self._unsent += len(rest)
        try:
            while self._stopped_listening:  # the chardev should not have read this any more
                await self._changed.park()
            while rest:
                if (line := self.line) is None or self.guest_throttled:
                    await self._changed.park()
                    continue
                sent = await line.send(self.id, rest, self._may_send)
                self.counters.bytes_out += sent
                self._unsent -= sent
                rest = rest[sent:]
        finally:
            self._unsent -= len(rest)
            self.counters.dropped += len(rest)

    @override
    def send_nowait(self, data: Buffer) -> int:
        if not self._may_send() or self.line is None or not len(data):
            return 0
        try:
            sent = self.line.send_nowait(self.id, data)
        except trio.WouldBlock:
            return 0
        self.counters.bytes_out += sent
        return sent

    @contextmanager
    @override
    def listening(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as scope:
            if self._stopped_listening:
                scope.cancel()
            self._listening.add(scope)
            try:
                yield scope
            finally:
                self._listening.discard(scope)

    # --- an ending: see draining.py -------------------------------------------------------

    def begin_ending(self, *, hold: bool, last: bool = True) -> None:
        """Begin to end: deliver what is there; with `hold`, tell the guest to stop.

        `last` means that no `go_on` will follow, so a chardev that `keeps_sessions` is shown the
        end of its session.
        """
        self._ending, self._is_final = True, last
        self._inbox.hold(by_ending=hold)
        self.settle()

    def settle(self) -> int:
        """Return how many bytes are still to be delivered, both ways, to an end that is there.

        Once the far side of an ending port has everything, stop listening to it.
        """
        to_far_side = self.unread() if self.unread is not None else 0
        if self.connected:
            to_far_side += self._inbox.waiting
        if self._ending and not to_far_side and not self._stopped_listening:
            self._stop_listening()
            to_far_side += self._inbox.queue.marks
        return to_far_side + (self._unsent if self.line is not None else 0)

    def _stop_listening(self) -> None:
        self._stopped_listening = True
        if self._is_final and self.spec.chardev.keeps_sessions:
            self.set_guest_connected(False)
        for scope in self._listening:
            scope.cancel()

    def go_on(self) -> None:
        """Undo `begin_ending`, so that the next client can connect."""
        self._ending = self._is_final = self._stopped_listening = False
        self._inbox.hold(by_ending=False)
        self._inbox.refill()
        self._wake()
        self.pump()

    async def wait_hung_up(self, client: Callable[[], None]) -> None:
        """Wait until `hang_up_client` is no longer `client`: that client is gone."""
        while self.hang_up_client is client:
            await self._hung_up.park()

    def chardev_ended(self) -> None:
        """Note that the chardev has ended: there is no far side any more."""
        self.sink = self.source = self.unread = None
        self.hang_up_client = self.reopen = None
        self.disconnect()
        self._inbox.drop_in_hand()
        self.ended.set()

    def give_up(self) -> None:
        """Drop everything that is queued, because the port ends."""
        self._inbox.drop_in_hand()
        self._inbox.drop()

    # --- what the guest does --------------------------------------------------------------

    def attach(self, line: HostPortLine) -> None:
        """Use `line` to a guest that has taken up the port."""
        self.guest_throttled = False
        self._inbox.attach(line)
        if self.connected:
            line.open_port(self.id, True)
        self._inbox.tell_throttle()
        self._inbox.throttle_when_full()
        self.on_change()
        self._wake()
        self.pump()

    def detach(self) -> None:
        """Note that the guest is gone."""
        self.guest_throttled = False
        self._inbox.detach()
        self.set_guest_connected(False)
        self.on_change()

    def set_guest_connected(self, connected: bool) -> None:
        """Note that the guest opened the port, or closed it."""
        if connected == self._guest_connected:
            return
        self._guest_connected = connected
        self.counters.opens += connected
        self._tell_tap("open" if connected else "close")
        if self.spec.chardev.keeps_sessions:
            if connected:
                self._sessions += 1
            else:
                self._end_session()
        self.on_change()
        self._wake()

    def _end_session(self) -> None:
        if not self._inbox.end_session(always=self._sessions <= _SESSIONS_MAX):
            self._sessions -= 1  # the session was empty, and too many wait already
        self._arrived.unpark()

    def set_guest_throttled(self, throttled: bool) -> None:
        """Note that the guest wants no more data, or wants it again."""
        self.guest_throttled = throttled
        self.on_change()
        self._wake()
        if not throttled:
            self.pump()

    def feed(self, data: memoryview, size: int | None) -> None:
        """Take `data` from the guest; `size` is that of `events.Data`."""
        inbox, came = self._inbox, len(data)
        inbox.came(came)
        if self.tap is not None:
            self.tap.came(data)
        if not (self.connected or self.cache or self.spec.chardev.keeps_all):
            self.counters.dropped += came
            return
        taken = 0
        if self.sink is not None and inbox.messages is None and not inbox.queue.size:
            taken = self.sink(data)
            inbox.delivered_bytes += taken
        if taken == came and inbox.messages is None:
            return
        inbox.put(data[taken:], size)
        self._arrived.unpark()
        SHARED.others_wait = True
        inbox.throttle_when_full()

    def pump(self) -> None:
        """Send what the `source` supplies, at each of the port's turns until the guest is full."""
        if self.source is not None and self.line is not None:
            self.line.offer(self.id, self._ask_source)

    def _ask_source(self, room: int) -> Buffer:
        may_send = self.connected and self._may_send() and not self._ending
        if self.source is None or not may_send:
            return b""
        data = self.source(min(room, _SOURCE_SHARE))
        self.counters.bytes_out += len(data)
        return data

    def room_came(self) -> None:
        """Note that there is room to send again."""
        self.on_room()

    # --- throttling the guest -------------------------------------------------------------

    def hold_guest(self, on: bool, seen: Callable[[], None] = lambda: None) -> None:
        """Tell the guest to stop, because the chardev has no space, or to go on.

        `seen` is called when the guest has seen that it is to stop. A new guest may send.
        """
        self._inbox.hold_by_chardev(on, seen)

    def refill(self) -> None:
        """Fetch what is in the port's own ring (virtio1)."""
        self._inbox.refill()

    def throttle_by_hand(self, on: bool) -> None:
        """Tell the guest to stop sending, whatever is queued, or to go on; also the next guest."""
        self._inbox.hold(by_hand=on)
        self.on_change()
        self._inbox.refill()

    def _tell_tap(self, event: str) -> None:
        if self.tap is not None:
            self.tap.happened(event)

    def _may_send(self) -> bool:
        return self.line is not None and not self.guest_throttled

    def _wake(self) -> None:
        self._changed.unpark_all()
        if self.line is not None:
            self.line.nudge(self.id)

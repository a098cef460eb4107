"""The guest's data on its way to a chardev: queued, in the chardev's hand, or delivered.

Data that the chardev has not taken waits here, up to the port's host limit; then the guest is told
to stop, and at half of the limit to go on: see link/throttle.py. It is also told to stop while the
port is throttled by hand, is ending, or has a chardev that says so, however much is in the queue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from attrs import define, field

from vconfs.host._messages import UNDER_WAY, MessageQueue
from vconfs.link.byte_queue import MARK_COST, ByteQueue
from vconfs.link.port_line import Line
from vconfs.link.throttle import Throttle
from vconfs.protocol.events import Buffer
from vconfs.system.log_once import LogOnce
from vconfs.system.stopwatch import Stopwatch

_trouble = LogOnce(logging.getLogger(__name__))


class HostPortLine(Line, Protocol):
    """A port's way to the guest: the part of an attached guest that host ports use."""

    def offer(self, port_id: int, give: Callable[[int], Buffer]) -> None:
        """At each turn of this port send what `give` returns, until it returns nothing."""


@define
class HostCounters:
    """Counts what went through a port, and what was lost by rule."""

    bytes_in: int = 0  # from the guest
    bytes_out: int = 0  # to the guest
    connects: int = 0  # how often the far side has connected
    opens: int = 0  # how often the guest has opened the port
    resets: int = 0  # how often the guest went on sending after it was told to stop
    host_throttled: Stopwatch = field(factory=Stopwatch)  # we want no more of the guest
    guest_throttled: Stopwatch = field(factory=Stopwatch)  # the guest wants no more of us
    on_drop: Callable[[], None] = field(default=lambda: None, eq=False, repr=False)
    _dropped: int = 0

    @property
    def dropped(self) -> int:
        """Bytes that were lost by rule; adding to it calls `on_drop`."""
        return self._dropped

    @dropped.setter
    def dropped(self, count: int) -> None:
        more, self._dropped = count > self._dropped, count
        if more:
            self.on_drop()


@define(eq=False)
class HostInbox:
    """What the guest has sent on one port. `line` is the way to the guest, or None."""

    port_id: int
    _limit: int
    _counters: HostCounters
    #: The queue of a chardev that keeps the boundaries of messages, or None.
    messages: MessageQueue | None
    line: HostPortLine | None = field(init=False, default=None)
    #: True if the guest is to stop because the user said so.
    held_by_hand: bool = field(init=False, default=False)
    #: True if the guest is to stop because the port is ending.
    held_by_ending: bool = field(init=False, default=False)
    #: True if the guest is to stop because the chardev has no space.
    held_by_chardev: bool = field(init=False, default=False)
    #: The number of bytes from the guest that the far side has.
    delivered_bytes: int = field(init=False, default=0)
    #: Bytes that the chardev has received and that are neither delivered nor back in the queue.
    in_hand: int = field(init=False, default=0)
    queue: ByteQueue = field(init=False, factory=ByteQueue)
    _throttle: Throttle = field(init=False, factory=Throttle)
    #: True from when the queue is full until it is half empty again.
    _full: bool = field(init=False, default=False)

    @property
    def size(self) -> int:
        """Bytes that the chardev has not taken yet."""
        return self.messages.size if self.messages else self.queue.size

    @property
    def cost(self) -> int:
        """The size of what waits for the chardev as it counts towards the port's limit."""
        return self.messages.cost if self.messages else self.queue.cost

    @property
    def waiting(self) -> int:
        """The amount still to be delivered: bytes queued and in hand, and ends of sessions."""
        return self.size + self.queue.marks + self.in_hand

    @property
    def is_throttling(self) -> bool:
        """True if the guest was asked to stop sending."""
        return self._throttle.on

    @property
    def wants_data(self) -> bool:
        """True if there is space for more from the guest (for links that throttle by rings)."""
        return not self._is_held and self.cost < self._limit

    @property
    def _is_held(self) -> bool:
        return self.held_by_hand or self.held_by_ending or self.held_by_chardev

    # --- what the chardev does ------------------------------------------------------------

    def take(self, size: int) -> bytes:
        """Take up to `size` bytes into the chardev's hand; nothing at the end of a session."""
        if self.queue.at_mark:
            self.queue.take_mark()
            self.took()
            return b""
        pieces = self.queue.take(size)
        data = bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
        self.in_hand = len(data)
        self.took()
        return data

    def took_first(self, size: int) -> None:
        """Note that the far side has taken the first `size` bytes of the queue."""
        self.queue.take(size)
        self.delivered_bytes += size
        self.took()

    def take_message(self) -> bytes:
        """Take the next message into the chardev's hand."""
        assert self.messages is not None
        message = self.messages.take()
        self.in_hand = len(message)
        self.took()
        return message

    def delivered(self, size: int) -> None:
        """Note that the far side has `size` bytes of those in hand."""
        self.in_hand -= size
        self.delivered_bytes += size

    def put_back(self, data: Buffer) -> None:
        """Put back what was in hand and is not delivered; the rest of it is delivered."""
        self.in_hand -= len(data)
        self.delivered(self.in_hand)
        if not len(data):
            return
        if self.messages is not None:
            self.messages.put_back(bytes(data))
        else:
            self.queue.put_back(data)
        self.throttle_when_full()

    def drop_in_hand(self) -> None:
        """Drop what is in the chardev's hand."""
        self._counters.dropped += self.in_hand
        self.in_hand = 0

    def drop(self) -> None:
        """Drop what is queued."""
        self._counters.dropped += self.messages.clear() if self.messages else self.queue.clear()
        self.took()

    # --- what the guest does --------------------------------------------------------------

    def came(self, size: int) -> None:
        """Count `size` bytes from the guest, which may be dropped or queued."""
        self._counters.bytes_in += size
        if self._throttle.was_seen:  # else it need not count
            self._throttle.came(size)

    def put(self, data: memoryview, size: int | None) -> None:
        """Queue `data`; `size` is that of `events.Data`."""
        if self.messages is not None:
            self._throttle.came(UNDER_WAY)
            self.messages.put(data, size)
        else:
            self.queue.put(data)

    def end_session(self, *, always: bool) -> bool:
        """Queue the end of a session, also of an empty one if `always`; True if it was queued."""
        if not self.queue.put_mark(always=always):
            return False
        self._throttle.came(MARK_COST)
        return True

    # --- throttling the guest -------------------------------------------------------------

    def attach(self, line: HostPortLine) -> None:
        """Use the line to a guest that may send."""
        self.line = line
        self._full = self.held_by_chardev = False
        self._throttle.forget()
        self._time_throttling()

    def detach(self) -> None:
        """Note that the guest is gone, and drop the message of which the rest will not come."""
        self.line = None
        self._throttle.forget()
        self._time_throttling()
        if self.messages is not None:
            self._counters.dropped += self.messages.abandon()

    def hold(self, *, by_hand: bool | None = None, by_ending: bool | None = None) -> None:
        """Change why the guest is to stop, however much is queued."""
        if by_hand is not None:
            self.held_by_hand = by_hand
        if by_ending is not None:
            self.held_by_ending = by_ending
        self.tell_throttle()

    def hold_by_chardev(self, on: bool, seen: Callable[[], None]) -> None:
        """Change whether the chardev has no space; `seen` is called once the guest has stopped."""
        self.held_by_chardev = on
        self._throttle.on_seen = seen
        if on and self._throttle.was_seen:
            seen()
        self.tell_throttle()

    def took(self) -> None:
        """Tell the guest to go on if enough was taken, and fetch what fits now (virtio1)."""
        if self._full and self.cost <= self._limit // 2:
            self._full = False
            self.tell_throttle()
        self._time_throttling()
        self.refill()

    def refill(self) -> None:
        """Fetch what is in the port's own ring (virtio1)."""
        if (line := self.line) is not None and not line.throttles:
            line.refill(self.port_id)

    def tell_throttle(self) -> None:
        """Tell the guest to stop or to go on, if that is not what it was told last."""
        wanted, line = self._is_held or self._full, self.line
        if line is not None and line.throttles and wanted != self._throttle.on:
            self._throttle.ask(line, self.port_id, wanted)
        self._time_throttling()

    def _time_throttling(self) -> None:
        throttles = self._throttle.on or not self.wants_data
        self._counters.host_throttled.set(throttles and self.line is not None)

    def throttle_when_full(self) -> None:
        """Tell the guest to stop if the queue is full; drop it if the guest does not listen."""
        self._time_throttling()
        line = self.line
        if line is None or not line.throttles or self.cost < self._limit:
            return
        if not self._full:
            self._full = True
            self.tell_throttle()
        elif self._throttle.is_ignored(line, self.cost - self._limit):
            reset = "port %d: the guest ignores THROTTLE, its data is dropped"
            _trouble.warning((self.port_id, id(self)), reset, self.port_id)
            self._counters.resets += 1
            self.drop()

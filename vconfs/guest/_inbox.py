"""The way in of a port: what came from the host and is unread, and what the host was told of it.

Theory of operation
-------------------
A hang-up has a place in the stream of bytes. Data that the host sent before it can be read; then
comes one end of file; then the data of a later connection. A hang-up leaves a mark in the queue if
a reader has to see it there: if data is unread, if data of this connection was read, or if a reader
waits.

An opener has seen a hang-up when it has read that end of file, or when its poll returned POLLHUP
with no data before it (`Port.answer_poll`). For an opener that polled, the next connection then
starts without an end of file. The mark stays for the other openers until one of them reads it,
because what one program polls says nothing about what another one knows. The mark is removed, for
all openers, by the first read that returns the end of file or what comes after it: like each byte,
an end of file goes to one reader.

When the queue is full, the host is asked to stop: see `vconfs.link.throttle`.
"""

from __future__ import annotations

import errno
import logging
import os

import trio
from attrs import define, field
from trio.lowlevel import ParkingLot

from vconfs.guest._attachment import Attachment
from vconfs.guest._port_states import Event, Read
from vconfs.guest.opener import Opener
from vconfs.guest.options import DEFAULT_CEILING, DEFAULT_LIMIT
from vconfs.link.byte_queue import MARK_COST, ByteQueue, Lent
from vconfs.link.throttle import Throttle
from vconfs.protocol.events import Buffer
from vconfs.system.log_once import LogOnce

_trouble = LogOnce(logging.getLogger(__name__))


@define(eq=False)
class Inbox:
    """The queue of bytes and hang-ups that came from the host."""

    _at: Attachment
    #: The limit that the host has set, or 0.
    host_limit: int = 0
    #: Held by the reader that waits.
    turn: trio.StrictFIFOLock = field(init=False, factory=trio.StrictFIFOLock)
    #: True if the host was asked to go on, and the observers of the port do not know it yet.
    resumed: bool = field(init=False, default=False)
    _queue: ByteQueue = field(init=False, factory=ByteQueue)
    #: True if bytes of this connection were read: readers must then see its hang-up.
    _delivered: bool = field(init=False, default=False)
    #: Openers to which a poll has shown the hang-up at the head of the queue.
    _seen: set[Opener] = field(init=False, factory=set)
    #: True if the host overran its limit: its data is dropped until it opens the port again.
    _was_reset: bool = field(init=False, default=False)
    _throttle: Throttle = field(init=False, factory=Throttle)
    _readable: ParkingLot = field(init=False, factory=ParkingLot)

    # --- status ---------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The number of unread bytes."""
        return self._queue.size

    @property
    def is_throttling(self) -> bool:
        """True if the host was asked to stop sending."""
        return self._throttle.on

    @property
    def limit(self) -> int:
        """The number of unread bytes at which the host is asked to stop; see `Port.limit`."""
        options = self._at.options
        ceiling = options.limit or DEFAULT_CEILING
        return min(self.host_limit or options.limit or DEFAULT_LIMIT, ceiling)

    @property
    def space(self) -> int:
        """The number of bytes that may still come before the host is asked to stop."""
        return self.limit - self._queue.cost

    @property
    def wants_data(self) -> bool:
        """True if there is space for more data."""
        return not self._at.mount_end.holds and self._queue.cost < self.limit

    def is_readable(self, opener: Opener | None) -> bool:
        """True if a read by `opener`, or by a new one, returns data or a hang-up's end of file."""
        queue = self._queue
        if queue.size:
            return True
        return queue.at_mark and not self._at.state.removed and not self._is_over(opener)

    @property
    def shows_hang_up(self) -> bool:
        """True if a poll now shows an opener the hang-up at the head of the queue."""
        queue = self._queue
        is_next = queue.at_mark and not queue.size and not self._at.state.connected
        return is_next and not self.turn.locked()  # else a waiting reader will get it

    def _is_over(self, opener: Opener | None) -> bool:
        """True if `opener` has seen the hang-up at the head, and a new connection has begun."""
        return opener in self._seen and (self._at.state.connected or self._queue.size > 0)

    # --- reading --------------------------------------------------------------------------

    def take(self, size: int, opener: Opener | None) -> list[Buffer]:
        """Take up to `size` bytes, in pieces; return no pieces at end of file.

        Call `took` afterwards. Raise ENODEV or trio.WouldBlock.
        """
        queue, at = self._queue, self._at
        if queue.spent:
            queue.give_back()
        if queue.marks and queue.at_mark:
            if not self._is_over(opener):
                self._pass_mark()
                return []
            if queue.size:
                self._pass_mark()
        if queue.size and not (queue.marks and queue.at_mark):
            pieces = queue.take(size)
            if at.state.connected and not queue.marks:
                self._delivered = True
            return pieces
        read = at.state.read
        if read is Read.ENODEV:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if read is Read.WAITS or (at.options.wait and not at.mount_end.over):
            raise trio.WouldBlock
        return []

    async def wait(self) -> None:
        """Wait until a read may find something else than the last one."""
        await self._readable.park()

    def wake(self) -> None:
        """Wake the reader that waits."""
        if self._readable:
            self._readable.unpark_all()

    def give_back(self) -> None:
        """Return the lent buffers of the pieces that were taken."""
        if self._queue.spent:
            self._queue.give_back()

    def took(self) -> None:
        """Ask the host to go on if enough was taken, and fetch what fits now (virtio1)."""
        line = self._at.line
        if line is None:
            return
        if not line.throttles:
            line.refill(self._at.id)
            return
        may_go_on = self._throttle.on and not self._at.mount_end.holds
        if may_go_on and self._queue.cost <= self.limit // 2:
            self._throttle.ask(line, self._at.id, False)
            self.resumed = True

    def see_hang_up(self, opener: Opener) -> None:
        """Note that a poll has shown `opener` the hang-up at the head of the queue."""
        self._seen.add(opener)

    def forget(self, opener: Opener) -> None:
        """Forget what an opener has seen, because it has closed the port."""
        self._seen.discard(opener)

    def closed(self, *, used: bool, keeps: bool) -> None:
        """Drop what is unread after the last close, if the port was used; or keep it."""
        self._queue.give_back()
        if not used:
            return
        self._delivered = False
        if not keeps:
            self.drop()
        elif self._queue.at_mark:
            self._pass_mark()  # a later opener need not see this hang-up

    def drop(self) -> None:
        """Drop what is unread."""
        self._at.counters.dropped += self._queue.clear()

    def _pass_mark(self) -> None:
        self._queue.take_mark()
        self._seen.clear()
        self._delivered = False

    # --- what the host does ---------------------------------------------------------------

    def put(self, data: Buffer, lent: Lent | None) -> bool:
        """Queue data, copied if it is not `lent`; return True if the host overruns us."""
        at, size = self._at, len(data)
        if self._was_reset:
            at.counters.dropped += size
            if lent is not None:
                lent.give_back()
                lent.flush()
            return False
        line, throttle = at.line, self._throttle
        throttles = line is not None and line.throttles
        if throttles and not at.state.connected:
            at.happened(Event.HOST_OPENS)  # its PORT_OPEN came before we listened (v8 patch)
        at.counters.bytes_in += size
        if at.tap is not None:
            at.tap.came(data)
        if lent is None:
            self._queue.put(data)
        else:
            self._queue.lend(memoryview(data), lent)
        if throttle.was_seen:  # else it need not count, which saves a call for each buffer
            throttle.came(size)
        if line is not None and throttles and self._queue.cost >= self.limit:
            if throttle.on:
                return throttle.is_ignored(line, self._queue.cost - self.limit)
            throttle.ask(line, at.id, True)
        return False

    def reset(self) -> None:
        """Drop everything, because the host overruns us, and also what comes until it opens."""
        at = self._at
        whose, peer = (f"guest {at.guest}: ", "guest") if at.guest else ("", "host")
        reset = "%svcon%d: the %s ignores THROTTLE, the port is reset"
        _trouble.warning((at.guest, at.id), reset, whose, at.id, peer)
        at.counters.resets += 1
        self.drop()
        self._was_reset = True
        self._delivered = True  # readers must see that the stream is broken here

    def end_reset(self) -> None:
        """Accept data again: the host opened its side, or there is another host."""
        self._was_reset = False

    def host_opened(self, *, used: bool) -> None:
        """Begin a new connection."""
        if self._queue.at_mark and not used:
            self._pass_mark()  # no opener has read what came before the mark, or waits
            self.took()

    def host_hung_up(self) -> None:
        """Put a mark in the queue if a reader has to see this hang-up."""
        if self._queue.size or self._delivered or self.turn.locked():
            if self._queue.put_mark():
                self._throttle.came(MARK_COST)
            if self._queue.marks == 1:
                self._seen.clear()  # the first mark is this hang-up's
        self._delivered = False

    # --- the limit, the line, the end -----------------------------------------------------

    def check_limit(self) -> None:
        """Ask the host to stop or to go on, after a change of the limit, the line or the mount."""
        line = self._at.line
        if line is None:
            return
        if line.throttles and not self._throttle.on and not self.wants_data:
            self._throttle.ask(line, self._at.id, True)
        else:
            self.took()

    def forget_host(self) -> None:
        """Reset what the last host was asked for: there is another, or none."""
        self._throttle.forget()

    def own(self) -> None:
        """Copy what lies in the device's memory, because the device goes away."""
        self._queue.own()

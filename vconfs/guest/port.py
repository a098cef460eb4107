"""A port of the guest end, and what a program that has it open can do with it.

Theory of operation
-------------------
A `Port` is a queue of bytes that came from the host, and a line to send to the host. It outlives
the connection to its device: while there is no connection, the port looks hung up.

Reading and writing have two forms each, as in trio: `read_nowait` and `write_nowait` act at once or
raise trio.WouldBlock, `read` and `write` wait. Readers take turns in the order in which they came,
and so do writers. A waiting reader or writer holds the turn; one that is cancelled passes it on. A
reader takes its bytes only after it was woken and has its turn, and awaits nothing after that, so a
cancelled reader has taken nothing.

A hang-up has a place in the stream of bytes. Data that the host sent before it can be read; then
comes one end of file; then the data of a later connection. A hang-up leaves a mark in the queue if
a reader has to see it there: if data is unread, if data of this connection was read, or if a reader
waits.

An opener has seen a hang-up when it has read that end of file, or when its poll returned POLLHUP
with no data before it (`answer_poll`). For an opener that polled, the next connection then starts
without an end of file. The mark stays for the other openers until one of them reads it, because
what one program polls says nothing about what another one knows. The mark is removed, for all
openers, by the first read that returns the end of file or what comes after it: like each byte, an
end of file goes to one reader.

A port is used once any opener has read, written or polled. The last close drops unread data only if
the port was used. A program's open is quiet: the host is told of it when the port is used, or after
a short time (see idle_opens.py; there is no clock here).

Errors are OSError with the errno that the caller of read(2) or write(2) gets.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import select
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

import trio
from attrs import define, field, frozen
from trio.lowlevel import ParkingLot

from vconfs.guest._patience import WaitLimit
from vconfs.link.byte_queue import MARK_COST, ByteQueue
from vconfs.link.throttle import Throttle
from vconfs.protocol.events import Buffer
from vconfs.syntax.patience import DEFAULT_PATIENCE, parse_patience
from vconfs.system.log_once import LogOnce

log: Final = logging.getLogger(__name__)
_trouble = LogOnce(log)

_READABLE = select.POLLIN | select.POLLRDNORM
_WRITABLE = select.POLLOUT | select.POLLWRNORM

#: The limit of unread bytes per port if neither the options nor the host set one.
DEFAULT_LIMIT = 1 << 20
#: The highest limit that a host can set if the options set none.
DEFAULT_CEILING = 16 << 20


@frozen
class PortOptions:
    """How the ports of a mount behave; see "What a file does" in README.md."""

    exclusive: bool = False  # a second open is refused with EBUSY
    wait: bool = False  # without a host, a read waits for one instead of returning end of file
    cache: bool = False  # unread data survives the last close, whatever the host says
    #: Seconds that a write waits while the host throttles the port, or its device is away. It also
    #: accepts the option's text: "enospc" is 0, "block" is infinity, "500ms" is 0.5.
    throttle: float = field(default=DEFAULT_PATIENCE, converter=parse_patience)
    #: The limit of unread bytes, and the highest that the host can set; None: see `Port.limit`.
    limit: int | None = None


@frozen(eq=False)
class Opener:
    """One open file of a port, and the process that opened it."""

    pid: int
    command: bytes = b""  # the process's name at the open, safe to print
    can_read: bool = True

    @property
    def reads(self) -> bool:
        """True if this opener may read what is queued in the port."""
        return self.can_read

    def owed(self) -> int:
        """Return how many bytes this opener has taken and not passed on (a pty beside the port)."""
        return 0


class PortLine(Protocol):
    """A port's line to its host: the part of a connected device that ports use."""

    #: Whether back-pressure is a THROTTLE message (v8) or the port's own ring (virtio1).
    throttles: bool

    #: Whether `open_port` can raise OSError: it is then called at the open, which fails with it.
    can_refuse: bool

    @property
    def in_flight(self) -> int:
        """The most bytes that may be under way when the host has seen the request to stop."""

    def has_room(self, port_id: int) -> bool: ...  # noqa: D102
    def send_nowait(self, port_id: int, data: Buffer) -> int: ...  # noqa: D102
    def send_later(self, port_id: int, data: Buffer) -> int: ...  # noqa: D102
    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int: ...  # noqa: D102
    def nudge(self, port_id: int) -> None: ...  # noqa: D102
    def open_port(self, port_id: int, opened: bool) -> None: ...  # noqa: D102
    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None: ...  # noqa: D102
    def refill(self, port: Port) -> None: ...  # noqa: D102


@define
class Counters:
    """Counts of what went through a port, and of what was dropped by rule."""

    bytes_in: int = 0
    bytes_out: int = 0
    dropped: int = 0  # bytes that were unread at the last close, or beyond the limit
    ignored: int = 0  # messages that the host may not send
    resets: int = 0  # times that the host went on sending after it was told to stop


@define(eq=False, slots=True)
class Port:
    """One port of the device."""

    id: int
    options: PortOptions = field(factory=PortOptions)
    on_change: Callable[[Port], None] = field(default=lambda port: None)

    name: bytes = b""
    console: bool = False
    size: tuple[int, int] = (0, 0)  # of a console: columns and rows, 0 where unknown
    hvc: int | None = None  # of a console: its number
    pty: str = ""  # path of the pty beside the port, if it has one
    host_connected: bool = False
    host_throttled: bool = False
    removed: bool = False
    host_cache: bool = False
    host_limit: int = 0
    #: In the order in which they opened the port.
    openers: dict[Opener, None] = field(factory=dict)
    counters: Counters = field(factory=Counters)
    #: Returns how many bytes the host has dropped, or None if the host is not in this process.
    dropped_by_host: Callable[[], int | None] = field(default=lambda: None)

    _line: PortLine | None = field(init=False, default=None)
    #: Takes a console's output while its device is up and the port is not there.
    _emergency: PortLine | None = field(init=False, default=None)
    _queue: ByteQueue = field(init=False, factory=ByteQueue)
    #: True if bytes of this connection were read: readers must then see its hang-up.
    _delivered: bool = field(init=False, default=False)
    #: True if the host was told that the port is open, or will be once the device is there.
    _told: bool = field(init=False, default=False)
    #: True if any opener has read, written or polled since the first open.
    _used: bool = field(init=False, default=False)
    #: Openers to which a poll has shown the hang-up at the head of the queue.
    _seen: set[Opener] = field(init=False, factory=set)
    #: True if the host overran its limit: its data is dropped until it opens the port again.
    _was_reset: bool = field(init=False, default=False)
    _throttle: Throttle = field(init=False, factory=Throttle)
    #: True once the mount has ended: no call may wait any more.
    _shut: bool = field(init=False, default=False)
    #: True once the mount is ending: no writes are accepted and, with `_holding`, no host data.
    ending: bool = field(init=False, default=False)
    _holding: bool = field(init=False, default=False)
    _read_turn: trio.StrictFIFOLock = field(init=False, factory=trio.StrictFIFOLock)
    _write_turn: trio.StrictFIFOLock = field(init=False, factory=trio.StrictFIFOLock)
    _readable: ParkingLot = field(init=False, factory=ParkingLot)
    _writable: ParkingLot = field(init=False, factory=ParkingLot)
    _write_limit: WaitLimit = field(init=False, factory=WaitLimit)

    # --- status ---------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """The number of bytes that came from the host and are unread."""
        return self._queue.size

    @property
    def guest_throttled(self) -> bool:
        """True if the host was asked to stop sending."""
        return self._throttle.on

    @property
    def limit(self) -> int:
        """The number of unread bytes at which the host is asked to stop.

        The host can set it, up to a ceiling: the limit of the options or, without one, 16 MiB. If
        the host has not set it, it is the limit of the options or, without one, 1 MiB.
        """
        ceiling = self.options.limit or DEFAULT_CEILING
        return min(self.host_limit or self.options.limit or DEFAULT_LIMIT, ceiling)

    @property
    def wants_data(self) -> bool:
        """True if there is space for more data (used where full rings throttle the host)."""
        return self.space > 0 and not self._holding

    @property
    def space(self) -> int:
        """The number of bytes that may still come before the host is asked to stop."""
        return self.limit - self._queue.cost

    @property
    def cache(self) -> bool:
        """True if unread data survives the last close."""
        return self.host_cache or self.options.cache

    def poll(self, opener: Opener | None = None) -> int:
        """Return the current poll(2) mask, for `opener` or, if None, for a new opener."""
        if self.removed:
            return select.POLLHUP | select.POLLERR | (_READABLE if self._queue.size else 0)
        mask = 0
        line = self._line
        if self._queue.size or (self._queue.at_mark and not self._is_over(opener)):
            mask |= _READABLE
        if not self.host_connected:
            mask |= select.POLLHUP
        line = line or self._emergency
        if line is None:
            return mask
        if not line.throttles and not self.host_connected:
            return mask | _READABLE  # the standard's driver reports end of file as readable
        if not self.host_throttled and not self.ending:
            mask |= _WRITABLE if line.has_room(self.id) else 0
        return mask

    @property
    def attached(self) -> bool:
        """True if the port's device is connected."""
        return self._line is not None

    # --- open and close -------------------------------------------------------------------

    def open(self, opener: Opener, *, quiet: bool = False) -> None:
        """Add an opener, and tell the host of the first.

        With `quiet`, the host is told later: when the port is used, or by `tell_open`. Raise EBUSY,
        ENXIO, or the error of the device.
        """
        if self.removed:
            _fail(errno.ENXIO)
        if self.openers and self.options.exclusive:
            _fail(errno.EBUSY)
        is_first = not self.openers
        self.openers[opener] = None
        if not quiet or (self._line is not None and self._line.can_refuse):
            try:
                self.tell_open()
            except OSError:
                del self.openers[opener]
                self._told = False
                raise
        if is_first:
            self.on_change(self)

    def tell_open(self) -> None:
        """Tell the host that the port is open, if it is open and the host does not know yet."""
        if self.openers and not self._told:
            self._told = True
            if self._line is not None:
                self._line.open_port(self.id, True)

    def close(self, opener: Opener) -> None:
        """Remove an opener. After the last, tell the host, and drop unread data if it was used."""
        self.openers.pop(opener, None)
        self._seen.discard(opener)
        if self.openers:
            return
        self._queue.give_back()
        if self._used:
            self._delivered = False
            if not self.cache:
                self.counters.dropped += self._queue.clear()
            elif self._queue.at_mark:
                self._pass_mark()  # a later opener need not see this hang-up
        told, self._told, self._used = self._told, False, False
        if told and self._line is not None:
            self._line.open_port(self.id, False)
        self._after_read()
        self.on_change(self)

    def _use(self) -> None:
        """Note that an opener reads, writes or polls, and tell the host of the open."""
        if not self._used and self.openers:
            self._used = True
            self.tell_open()

    # --- polling --------------------------------------------------------------------------

    def answer_poll(self, opener: Opener) -> int:
        """Return the poll(2) mask for `opener`, and note if it shows a hang-up."""
        self._use()
        mask = self.poll(opener)
        shows_hang_up = not self.host_connected and self._queue.at_mark and not self._queue.size
        if shows_hang_up and not self._read_turn.locked():  # else a waiting reader will get it
            self._seen.add(opener)
        return mask

    def _is_over(self, opener: Opener | None) -> bool:
        """True if `opener` has seen the hang-up at the head, and a new connection has begun."""
        return opener in self._seen and (self.host_connected or self._queue.size > 0)

    def _pass_mark(self) -> None:
        self._queue.take_mark()
        self._seen.clear()
        self._delivered = False

    # --- reading --------------------------------------------------------------------------

    def read_nowait(self, size: int, opener: Opener | None = None) -> list[Buffer]:
        """Take up to `size` bytes, in pieces; return no pieces at end of file.

        The pieces may lie in the device's memory, and are valid until the next call. Raise ENODEV
        or trio.WouldBlock.
        """
        self._use()
        if self._read_turn.locked():
            raise trio.WouldBlock
        return self._take(size, opener)

    async def read(self, size: int, opener: Opener | None = None) -> list[Buffer]:
        """Like `read_nowait`, but wait for a turn, then for data, a hang-up or a removal."""
        self._use()
        async with self._read_turn:
            while True:
                try:
                    return self._take(size, opener)
                except trio.WouldBlock:
                    await self._readable.park()

    def _take(self, size: int, opener: Opener | None) -> list[Buffer]:
        queue = self._queue
        queue.give_back()
        if queue.at_mark:
            if not self._is_over(opener):
                self._pass_mark()
                self._after_read()
                return []
            if queue.size:
                self._pass_mark()
        if queue.size and not queue.at_mark:
            pieces = queue.take(size)
            if self.host_connected and not queue.marks:
                self._delivered = True
            self._after_read()
            return pieces
        if self.removed:
            _fail(errno.ENODEV)
        if self.host_connected or (self.options.wait and not self._shut):
            raise trio.WouldBlock
        return []

    def _after_read(self) -> None:
        line = self._line
        if line is None:
            return
        if self._throttle.on and not self._holding and self._queue.cost <= self.limit // 2:
            self._throttle.ask(line, self.id, False)
            self.on_change(self)
        line.refill(self)

    # --- writing --------------------------------------------------------------------------

    def write_nowait(self, data: Buffer, *, nonblock: bool = False) -> int:
        """Send as much of `data` as fits now; return how much.

        Set `nonblock` if no `write` follows a WouldBlock. Some of the data may then be stored until
        its turn comes, and if the host has throttled the port, ENOSPC is raised unless writes
        wait without limit. Raise ENOSPC, ENODEV, ENOTCONN or trio.WouldBlock.
        """
        self._use()
        line = self._check_writable(nonblock=nonblock)
        if line is None or self._write_turn.locked():
            raise trio.WouldBlock
        try:
            sent = line.send_nowait(self.id, data)
        except trio.WouldBlock:
            if not nonblock:
                raise
            sent = line.send_later(self.id, data)
        self.counters.bytes_out += sent
        return sent

    async def write(self, data: Buffer, *, accepted: bool = False) -> int:
        """Like `write_nowait`, but wait for a turn, and then until the host takes something.

        Set `accepted` if the data was already taken from its writer: it is then sent even while
        the mount is ending. Raise ENOSPC or ENOTCONN if the host took nothing for as long as the
        option `throttle` allows.
        """
        self._use()
        while True:
            with self._write_limit.applied(math.inf if accepted else self._patience):
                async with self._write_turn:
                    return await self._send(data, accepted)
            patience = self._patience
            if patience < math.inf:  # else the host has resumed at this very moment
                self._write_limit.gave_up(patience)
                self._refuse()

    async def _send(self, data: Buffer, accepted: bool) -> int:
        while True:
            line = self._check_writable(accepted=accepted)
            if line is None:
                await self._writable.park()
                continue
            sent = await line.send(self.id, data, lambda: self._may_send(accepted))
            if sent:
                self.counters.bytes_out += sent
                return sent

    def _may_send(self, accepted: bool) -> bool:
        if self.ending and not accepted:
            return False
        line = self._way_out
        if self.removed or line is None or self.host_throttled:
            return False
        return line.throttles or self.host_connected

    @property
    def _way_out(self) -> PortLine | None:
        """The line that takes the port's output, or None."""
        return self._line or self._emergency

    @property
    def _is_refused(self) -> bool:
        """True if the host has throttled the port, or its device is away."""
        line = self._way_out
        return line is None or (line.throttles and self.host_throttled)

    @property
    def _patience(self) -> float:
        """The number of seconds that a write may wait from now on."""
        return self.options.throttle if self._is_refused else math.inf

    def _check_writable(self, *, nonblock: bool = False, accepted: bool = False) -> PortLine | None:
        """Return the line to write to, or None if the caller has to wait."""
        if self.removed:
            self._refuse()
        if self.ending and not accepted:
            _fail(errno.ENOTCONN)
        if self._is_refused:
            gives_up = not self.options.throttle or (nonblock and self._patience < math.inf)
            if self._shut or (gives_up and not accepted):
                self._refuse()
            return None
        line = self._way_out
        return line if line is not None and (line.throttles or self.host_connected) else None

    def _refuse(self) -> NoReturn:
        """Raise the error for a write that the host does not take."""
        if self.removed:
            _fail(errno.ENODEV)
        _fail(errno.ENOTCONN if self._way_out is None else errno.ENOSPC)

    # --- called by the device -------------------------------------------------------------

    def attach(self, line: PortLine, introduce: Callable[[], None] = lambda: None) -> None:
        """Connect the port to its device, for the first time or again.

        `introduce` makes the port known to its host, which then accepts messages for it.
        """
        self._line, self._emergency = line, None
        self.host_throttled = self._was_reset = False
        self._throttle.forget()
        self._write_limit.restart(self._patience)
        introduce()
        self._told = self._told or (line.can_refuse and bool(self.openers))
        if self._told:
            line.open_port(self.id, True)
        self._check_limit()
        self._changed()

    def use_emergency_line(self, line: PortLine) -> None:
        """Send output by `line` until `attach` (only for a console whose device is up)."""
        self._emergency = line
        self._write_limit.restart(self._patience)
        self._changed()

    def detach(self) -> None:
        """Disconnect the port from its device; the port stays, hung up."""
        self.host_throttled = False
        self._throttle.forget()
        self._queue.own()
        self.set_connected(False)
        self._let_go()

    def set_connected(self, connected: bool) -> None:
        """Note that the host opened its side, or hung up."""
        if connected:
            self._was_reset = False
        if connected == self.host_connected:
            return
        self.host_connected = connected
        if not connected:
            if self._queue.size or self._delivered or self._read_turn.locked():
                if self._queue.put_mark():
                    self._throttle.came(MARK_COST)
                if self._queue.marks == 1:
                    self._seen.clear()  # the first mark is this hang-up's
            self._delivered = False
        elif self._queue.at_mark and not self._used:
            self._pass_mark()  # no opener has read what came before the mark, or waits
            self._after_read()
        self._changed()

    def become_console(self) -> None:
        """Note that the host calls this port a console."""
        self.console = True
        self.on_change(self)

    def resize(self, cols: int, rows: int) -> None:
        """Note the size of the console on this port, as the host reports it."""
        self.size = (cols, rows)
        self.on_change(self)

    def set_options(self, options: PortOptions) -> None:
        """Change the options from now on; waiting calls check whether that affects them."""
        if options != self.options:
            self.options = options
            self._write_limit.restart(self._patience)
            self._check_limit()
            self._changed()

    def set_throttled(self, throttled: bool) -> None:
        """Note that the host wants no more data, or wants it again."""
        if throttled != self.host_throttled:
            self.host_throttled = throttled
            self._write_limit.restart(self._patience)
        self._changed()

    def set_limit(self, limit: int) -> None:
        """Set the limit of unread bytes that the host asks for (see `limit`); 0: our default."""
        self.host_limit = limit
        self._check_limit()
        self.on_change(self)

    def feed(self, data: memoryview, give_back: Callable[[], None] | None = None) -> None:
        """Queue data that the host sent, and wake readers: `put`, then `fed`."""
        self.put(data, give_back)
        self.fed()

    def fed(self) -> None:
        """Wake readers after `put`. This is costly, so call it once for several buffers."""
        self._changed()

    def put(self, data: Buffer, give_back: Callable[[], None] | None = None) -> None:
        """Queue data that the host sent: copied or, with a `give_back`, lent (see `ByteQueue`)."""
        size = len(data)
        if self._was_reset:
            self.counters.dropped += size
            if give_back is not None:
                give_back()
            return
        if not self.host_connected and self._line is not None and self._line.throttles:
            self.host_connected = True  # its PORT_OPEN came before we listened (v8 patch)
        self.counters.bytes_in += size
        if give_back is None:
            self._queue.put(data)
        else:
            self._queue.lend(memoryview(data), give_back)
        throttle, line = self._throttle, self._line
        throttle.came(size)
        if line is not None and line.throttles and self._queue.cost >= self.limit:
            if not throttle.on:
                throttle.ask(line, self.id, True)
            elif throttle.is_ignored(line):
                self._reset()

    def room_came(self) -> None:
        """Notify pollers that there is room to send again, after a poll that found none."""
        self.on_change(self)

    def remove(self) -> None:
        """Remove the port: the host took it away. Its openers get errors from now on."""
        self.removed = True
        self.host_connected = False
        self._let_go()

    # --- the end of the mount: see draining.py --------------------------------------------

    def begin_ending(self, *, hold: bool) -> None:
        """Refuse writes from now on; with `hold`, also ask the host to send nothing more."""
        self.ending, self._holding = True, hold
        line = self._line
        if hold and line is not None and line.throttles and not self._throttle.on:
            self._throttle.ask(line, self.id, True)
        self._changed()

    def owed(self) -> int:
        """Return how many bytes are owed to openers that read."""
        reads = any(opener.reads for opener in self.openers)
        in_hand = sum(opener.owed() for opener in self.openers)
        return (self._queue.size if reads else 0) + in_hand

    def shut(self) -> None:
        """Hang up for good, because the mount ends; no call waits after this."""
        self._shut = True
        self.detach()

    def give_up(self) -> None:
        """Drop the unread data, because the mount has ended."""
        self.counters.dropped += self._queue.clear()

    def _reset(self) -> None:
        _trouble.warning(self.id, "vcon%d: the host ignores THROTTLE, the port is reset", self.id)
        self.counters.resets += 1
        self.counters.dropped += self._queue.clear()
        self._was_reset = True
        self._delivered = True  # readers must see that the stream is broken here
        self.set_connected(False)
        self._after_read()

    def _check_limit(self) -> None:
        """Ask the host to stop or to resume, after a change of the limit or the line."""
        line = self._line
        if line is None:
            return
        if line.throttles and not self._throttle.on and self._queue.cost >= self.limit:
            self._throttle.ask(line, self.id, True)
        else:
            self._after_read()

    def _let_go(self) -> None:
        was_there = self._way_out is not None
        line, self._line, self._emergency = self._line, None, None
        if was_there:
            self._write_limit.restart(self._patience)
        if line is not None:
            line.nudge(self.id)
        self._changed()

    def _changed(self) -> None:
        if self._readable:
            self._readable.unpark_all()
        if self._writable:
            self._writable.unpark_all()
        if self._line is not None and self._write_turn.locked():
            self._line.nudge(self.id)
        self.on_change(self)


def _fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))

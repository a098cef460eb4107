"""A port of the guest end, and what a program that has it open can do with it.

Theory of operation
-------------------
A `Port` is a queue of bytes that came from the host (`Inbox`), and a line to send to the host
(`Outbox`). It outlives the connection to its device: while there is no connection, the port looks
hung up. What its calls do in each state is in the tables of `_port_states`. What readers see of a
hang-up is described in `_inbox`.

Reading and writing have two forms each, as in trio: `read_nowait` and `write_nowait` act at once or
raise trio.WouldBlock, `read` and `write` wait. A reader that says when it no longer needs the data
uses `take_nowait` or `take`, then `give_back`. Readers take turns in the order in which they came,
and so do writers. A waiting reader or writer holds the turn; one that is cancelled passes it on. A
reader takes its bytes only after it was woken and has its turn, and awaits nothing after that, so a
cancelled reader has taken nothing.

A port is used once any opener has read, written or polled. The last close drops unread data only if
the port was used. A program's open is quiet: the host is told of it when the port is used, or after
a short time (see idle_opens.py; there is no clock here).

Errors are OSError with the errno that the caller of read(2) or write(2) gets.
"""

from __future__ import annotations

import select
from collections.abc import Callable

import trio
from attrs import define

from vconfs.guest._attachment import Attachment, Counters, MountEnd, PortLine
from vconfs.guest._port_states import WRITABLE, Event
from vconfs.guest._port_status import PortFlags, PortStatus
from vconfs.guest.opener import Opener
from vconfs.guest.options import PortOptions
from vconfs.link.byte_queue import Lent
from vconfs.protocol.events import Buffer

__all__ = ["Counters", "MountEnd", "Opener", "Port", "PortFlags", "PortLine", "PortOptions"]


@define(eq=False, init=False)
class Port(PortStatus):
    """One port of the device."""

    on_change: Callable[[Port], None]

    def __init__(
        self,
        port_id: int,
        options: PortOptions | None = None,
        on_change: Callable[[Port], None] = lambda port: None,
        mount_end: MountEnd | None = None,
        guest: str = "",
    ) -> None:
        at = Attachment(port_id, options or PortOptions(), mount_end or MountEnd(), guest)
        self.__attrs_init__(port_id, at, on_change)

    # --- open and close -------------------------------------------------------------------

    def open(self, opener: Opener, *, quiet: bool = False) -> None:
        """Add an opener, and tell the host of the first.

        With `quiet`, the host is told later: when the port is used, or by `tell_open`. Raise EBUSY,
        ENXIO, or the error of the device.
        """
        is_first = not self._openers.all
        self._openers.add(opener, quiet=quiet)
        if is_first:
            self._notify()

    def tell_open(self) -> None:
        """Tell the host that the port is open, if it is open and the host does not know yet."""
        self._openers.tell()

    def close(self, opener: Opener) -> None:
        """Remove an opener. After the last, tell the host, and drop unread data if it was used."""
        self._openers.remove(opener)
        self._inbox.forget(opener)
        if self._openers.all:
            return
        self._inbox.closed(used=self._openers.used, keeps=self.cache)
        self._openers.all_closed()
        self._inbox.took()
        self._notify()

    # --- what programs do -----------------------------------------------------------------

    def answer_poll(self, opener: Opener) -> int:
        """Return the poll(2) mask for `opener`, and note if it shows a hang-up.

        If it shows no room to send, `on_change` is called when there is some.
        """
        self._openers.use()
        mask = self.poll(opener)
        if not mask & WRITABLE:
            self._outbox.want_room()
            mask = self.poll(opener)
        if mask & select.POLLHUP and self._inbox.shows_hang_up:
            self._inbox.see_hang_up(opener)
        return mask

    def read_nowait(self, size: int, opener: Opener | None = None) -> list[Buffer]:
        """Take up to `size` bytes, in pieces; return no pieces at end of file.

        The pieces may lie in the device's memory, and are valid until the next call. Raise ENODEV
        or trio.WouldBlock.
        """
        pieces = self.take_nowait(size, opener)
        self._took()
        return pieces

    async def read(self, size: int, opener: Opener | None = None) -> list[Buffer]:
        """Like `read_nowait`, but wait for a turn, then for data, a hang-up or a removal."""
        pieces = await self.take(size, opener)
        self._took()
        return pieces

    def take_nowait(self, size: int, opener: Opener | None = None) -> list[Buffer]:
        """Like `read_nowait`, but the host is asked for more only by `give_back`.

        Call that as soon as the pieces are no longer needed; the host then finds all buffers free.
        If there is no data, but the host is busy sending, this waits for it for a moment.
        """
        if not self._openers.used:
            self._openers.use()
        inbox = self._inbox
        if inbox.turn.locked():
            raise trio.WouldBlock
        try:
            return inbox.take(size, opener)
        except trio.WouldBlock:
            if not self.look_again():
                raise
        return inbox.take(size, opener)

    async def take(self, size: int, opener: Opener | None = None) -> list[Buffer]:
        """Like `take_nowait`, but wait as `read` does."""
        self._openers.use()
        async with self._inbox.turn:
            while True:
                try:
                    return self._inbox.take(size, opener)
                except trio.WouldBlock:
                    await self._inbox.wait()

    def give_back(self) -> None:
        """Return the buffers of the last `take` or `take_nowait`, and ask the host for more.

        Await nothing between the two.
        """
        self._inbox.give_back()
        self._took()

    def write_nowait(self, data: Buffer, *, nonblock: bool = False) -> int:
        """Send as much of `data` as fits now; return how much.

        Set `nonblock` if no `write` follows a WouldBlock. Some of the data may then be stored until
        its turn comes, and if the host has throttled the port, ENOSPC is raised unless writes
        wait without limit. Raise ENOSPC, ENODEV, ENOTCONN or trio.WouldBlock.
        """
        if not self._openers.used:
            self._openers.use()
        return self._outbox.write_nowait(data, nonblock=nonblock)

    async def write(self, data: Buffer, *, accepted: bool = False) -> int:
        """Like `write_nowait`, but wait for a turn, and then until the host takes something.

        Set `accepted` if the data was already taken from its writer: it is then sent even while
        the mount is ending. Raise ENOSPC or ENOTCONN if the host took nothing for as long as the
        option `throttle` allows.
        """
        self._openers.use()
        return await self._outbox.write(data, accepted=accepted)

    # --- called by the device -------------------------------------------------------------

    def attach(self, line: PortLine, introduce: Callable[[], None] = lambda: None) -> None:
        """Connect the port to its device, for the first time or again.

        `introduce` makes the port known to its host, which then accepts messages for it.
        """
        self._at.attach(line)
        self._inbox.end_reset()
        self._inbox.forget_host()
        self._outbox.restart_patience()
        introduce()
        self._openers.tell_new_host(line)
        self._inbox.check_limit()
        self._changed()

    def use_emergency_line(self, line: PortLine) -> None:
        """Send output by `line` until `attach` (only for a console whose device is up)."""
        self._at.use_emergency_line(line)
        self._outbox.restart_patience()
        self._changed()

    def detach(self) -> None:
        """Disconnect the port from its device; the port stays, hung up."""
        self._inbox.forget_host()
        self._inbox.own()
        if self.host_connected:
            self._inbox.host_hung_up()
        self._let_go(Event.DEVICE_LOST)

    def remove(self) -> None:
        """Remove the port: the host took it away. Its openers get errors from now on."""
        self._let_go(Event.REMOVED)

    def set_connected(self, connected: bool) -> None:
        """Note that the host opened its side, or hung up."""
        if connected:
            self._inbox.end_reset()
        if not self._at.happened(Event.HOST_OPENS if connected else Event.HOST_HANGS_UP):
            return
        if connected:
            self._inbox.host_opened(used=self._openers.used)
        else:
            self._inbox.host_hung_up()
        self._changed()

    def become_console(self) -> None:
        """Note that the host calls this port a console."""
        self.console = True
        self._notify()

    def resize(self, cols: int, rows: int) -> None:
        """Note the size of the console on this port, as the host reports it."""
        self.size: tuple[int, int] = (cols, rows)
        self._notify()

    def set_options(self, options: PortOptions) -> None:
        """Change the options from now on; waiting calls check whether that affects them."""
        if options != self.options:
            self._at.options = options
            self._outbox.restart_patience()
            self._inbox.check_limit()
            self._changed()

    def set_throttled(self, throttled: bool) -> None:
        """Note that the host wants no more data, or wants it again."""
        if self._at.happened(Event.THROTTLE if throttled else Event.UNTHROTTLE):
            self._outbox.restart_patience()
        self._changed()

    def hold_by_hand(self, on: bool) -> None:
        """Note that the host was asked to stop by hand, or to go on (at the host's side)."""
        self.throttled_by_hand = on
        self._notify()

    def set_limit(self, limit: int) -> None:
        """Set the limit of unread bytes that the host asks for (see `limit`); 0: our default."""
        self._inbox.host_limit = limit
        self._inbox.check_limit()
        self._notify()

    def feed(self, data: Buffer, lent: Lent | None = None) -> None:
        """Queue data that the host sent, and wake readers: `put`, then `fed`."""
        self.put(data, lent)
        self.fed()

    def fed(self) -> None:
        """Wake readers after `put`. This is costly, so call it once for several buffers."""
        self._inbox.wake()
        self._notify()

    def put(self, data: Buffer, lent: Lent | None = None) -> None:
        """Queue data that the host sent, and copy it if it is not `lent` (see `ByteQueue`)."""
        if self._inbox.put(data, lent):
            self._inbox.reset()
            self.set_connected(False)
            self._inbox.took()
            self._notify()

    def room_came(self) -> None:
        """Notify pollers that there is room to send again, after a poll that found none."""
        self._notify()

    # --- the end of the mount: see draining.py --------------------------------------------

    def begin_ending(self) -> None:
        """Act on it that the `MountEnd` has begun: refuse waiting writes, and stop the host."""
        if self._at.mount_end.holds:
            self._inbox.check_limit()
        self._changed()

    def owed(self) -> int:
        """Return how many bytes are owed to openers that read."""
        reads = any(opener.reads for opener in self.openers)
        in_hand = sum(opener.owed() for opener in self.openers)
        return (self.queued if reads else 0) + in_hand

    def give_up(self) -> None:
        """Drop the unread data, because the mount has ended."""
        self._inbox.drop()

    # --- helpers --------------------------------------------------------------------------

    def _took(self) -> None:
        self._inbox.took()
        if self._inbox.resumed:
            self._notify()

    def _let_go(self, event: Event) -> None:
        had_way_out = self._at.way_out is not None
        line = self._at.let_go(event)
        if had_way_out:
            self._outbox.restart_patience()
        if line is not None:
            line.nudge(self.id)
        self._changed()

    def _changed(self) -> None:
        """Wake all who wait, and notify the observers."""
        self._inbox.wake()
        self._outbox.wake()
        self._notify()

    def _notify(self) -> None:
        self._inbox.resumed = False
        self.on_change(self)

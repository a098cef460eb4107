"""What a port shows of itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from attrs import Factory, define, field

from vconfs.guest._attachment import Attachment, Counters
from vconfs.guest._inbox import Inbox
from vconfs.guest._openers import Openers
from vconfs.guest._outbox import Outbox
from vconfs.guest._port_states import READABLE, WRITABLE
from vconfs.guest.opener import Opener
from vconfs.guest.options import PortOptions
from vconfs.link.taps import PortTap


class PortFlags(NamedTuple):
    """The flags of a port: each change of one is an event.

    `peer` is true if the other side has its side of the port open, `open` if a program has this
    one. `throttled` means that the other side wants no more data, `throttles` that this one does.
    """

    peer: bool
    open: bool
    throttled: bool
    throttles: bool
    console: bool


@define(eq=False)
class PortStatus:
    """The parts of a port, and questions about it. No question changes anything."""

    id: int
    _at: Attachment
    _inbox: Inbox = field(init=False, default=Factory(lambda it: Inbox(it._at), takes_self=True))
    _outbox: Outbox = field(init=False, default=Factory(lambda it: Outbox(it._at), takes_self=True))
    _openers: Openers = field(
        init=False, default=Factory(lambda it: Openers(it._at), takes_self=True)
    )

    name: bytes = field(init=False, default=b"")
    console: bool = field(init=False, default=False)
    #: Of a console: columns and rows, 0 where unknown.
    size: tuple[int, int] = field(init=False, default=(0, 0))
    #: Of a console: its number.
    hvc: int | None = field(init=False, default=None)
    #: Path of the pty beside the port, if it has one.
    pty: str = field(init=False, default="")
    #: True if the host wants unread data to survive the last close.
    host_cache: bool = field(init=False, default=False)
    #: True if the host was also asked to stop by hand, whatever is queued: at the host's side.
    throttled_by_hand: bool = field(init=False, default=False)
    #: Returns how many bytes the host has dropped, or None if the host is not in this process.
    dropped_by_host: Callable[[], int | None] = field(init=False, default=lambda: None)
    #: Returns True if more data has come meanwhile, from a busy host.
    look_again: Callable[[], bool] = field(init=False, default=lambda: False)
    #: Waits, after an open, until the other side has taken it; raises OSError if it refuses. None:
    #: that is known at once.
    confirm_open: Callable[[], Awaitable[None]] | None = field(init=False, default=None)

    @property
    def guest(self) -> str:
        """The name of the guest, if this is the host's side of its port; else empty."""
        return self._at.guest

    @property
    def options(self) -> PortOptions:
        """How the port behaves; see `set_options`."""
        return self._at.options

    @property
    def tap(self) -> PortTap | None:
        """What to report to, if the port is watched."""
        return self._at.tap

    @tap.setter
    def tap(self, tap: PortTap | None) -> None:
        self._at.tap = tap

    @property
    def counters(self) -> Counters:
        """Counts of what went through the port."""
        return self._at.counters

    @property
    def openers(self) -> Mapping[Opener, None]:
        """The open files of the port, in the order in which they were opened."""
        return self._openers.all

    @property
    def flags(self) -> PortFlags:
        """The flags of the port."""
        state = self._at.state
        return PortFlags(
            peer=state.connected,
            open=bool(self._openers.all),
            throttled=state.throttled,
            throttles=self.guest_throttled,
            console=self.console,
        )

    @property
    def attached(self) -> bool:
        """True if the port's device is connected."""
        return self._at.line is not None

    @property
    def host_connected(self) -> bool:
        """True if the host has its side of the port open."""
        return self._at.state.connected

    @property
    def host_throttled(self) -> bool:
        """True if the host wants no more data."""
        return self._at.state.throttled

    @property
    def removed(self) -> bool:
        """True if the host took the port away."""
        return self._at.state.removed

    @property
    def ending(self) -> bool:
        """True once the mount is ending: no writes are accepted."""
        return self._at.mount_end.begun

    @property
    def queued(self) -> int:
        """The number of bytes that came from the host and are unread."""
        return self._inbox.size

    @property
    def guest_throttled(self) -> bool:
        """True if the host was asked to stop sending."""
        return self._inbox.is_throttling or self.throttled_by_hand

    @property
    def limit(self) -> int:
        """The number of unread bytes at which the host is asked to stop.

        The host can set it, up to a ceiling: the limit of the options or, without one, 16 MiB. If
        the host has not set it, it is the limit of the options or, without one, 1 MiB.
        """
        return self._inbox.limit

    @property
    def wants_data(self) -> bool:
        """True if there is space for more data (used where full rings throttle the host)."""
        return self._inbox.wants_data

    @property
    def space(self) -> int:
        """The number of bytes that may still come before the host is asked to stop."""
        return self._inbox.space

    @property
    def cache(self) -> bool:
        """True if unread data survives the last close."""
        return self.host_cache or self.options.cache

    def poll(self, opener: Opener | None = None) -> int:
        """Return the current poll(2) mask, for `opener` or, if None, for a new opener."""
        mask = self._at.state.poll
        if self._inbox.is_readable(opener):
            mask |= READABLE
        if self._outbox.has_room:
            mask |= WRITABLE
        return mask

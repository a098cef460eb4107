"""A port's request to its peer to stop sending, and how much may still come after it.

Theory of operation
-------------------
When a port's unread data reaches its limit, its end sends THROTTLE 1, and THROTTLE 0 when half of
it has been read. The peer may be in the middle of a burst of writes and read its control messages
only afterwards. Everything that it sends until then is valid, whatever the amount, and is kept.

Memory stays bounded because buffers are withheld meanwhile: from the moment that THROTTLE 1 is
sent until the peer has seen it, the buffers in which its data comes are not given back
(`LinkEnd.throttle`). So at most one full queue of data can come, and a peer that never reads its
control messages blocks only itself.

What an end has queued stays when a connection is lost, and the peer of the next connection may send
as much again before it sees THROTTLE. To bound the memory, a peer that has brought far more than
one connection can bring counts as ignoring THROTTLE, too.

The link knows when the peer has seen the message (`Link.send`). Data that was under way at that
moment can still arrive, at most `in_flight` bytes. A peer that sends more ignores THROTTLE.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from attrs import define, field

#: The most bytes beyond its limit that a port keeps: several times what one connection can bring.
_EXCESS_MAX: Final = 64 << 20


class ThrottleLine(Protocol):
    """The part of a connected link end that asks the peer to stop."""

    @property
    def in_flight(self) -> int:
        """The most bytes that may be under way when the peer has seen the request to stop."""

    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None:
        """Ask the peer to stop sending to a port, or to resume: see `LinkEnd.throttle`."""


@define
class Throttle:
    """The latest request of one port to its peer to stop or resume sending."""

    #: True if the peer was asked to stop.
    on: bool = False
    #: True if the peer has seen the request to stop, so that what comes now counts.
    was_seen: bool = False
    _late: int = 0  # bytes that came after the peer had seen the request
    _requests: int = 0  # a serial number, to ignore answers to earlier requests
    #: Called when the peer has seen the latest request to stop.
    on_seen: Callable[[], None] = field(default=lambda: None, eq=False, repr=False)

    def ask(self, line: ThrottleLine, port_id: int, on: bool) -> None:
        """Ask the peer to stop sending, or to resume."""
        self.forget()
        self.on = on
        line.throttle(port_id, on, partial(self._note_seen, self._requests))

    def forget(self) -> None:
        """Reset for another peer, which may send."""
        self.on = self.was_seen = False
        self._late = 0
        self._requests += 1

    def is_ignored(self, line: ThrottleLine, excess: int) -> bool:
        """True if the peer has sent more than can have been under way.

        `excess` is by how much its unread data, of all its connections, exceeds the port's limit.
        """
        return self._late > line.in_flight or excess > max(_EXCESS_MAX, 4 * line.in_flight)

    def came(self, size: int) -> None:
        """Count `size` bytes of data from the peer."""
        if self.was_seen:
            self._late += size

    def _note_seen(self, request: int) -> None:
        if request == self._requests:
            self.was_seen = self.on
            if self.was_seen:
                self.on_seen()

"""A port's request to its peer to stop sending, and how much may still come after it.

Theory of operation
-------------------
An end whose port holds as much unread data as it may sends THROTTLE 1, and THROTTLE 0 when half of
that has been read. The peer may be in the middle of a burst of writes and look at its queue only
afterwards. All that it sends until then is good, whatever the amount, and must be kept.

Memory stays bounded because buffers are withheld meanwhile: from the moment that THROTTLE 1 is
sent until the peer has seen it, the buffers in which its data comes are not given back
(`LinkEnd.throttle`). So at most a queue full of data can come, and a peer that never looks at its
control messages holds up itself alone.

The link knows when the peer has seen the message (`Link.send`). What was under way at that moment
can still arrive, at most `in_flight` bytes. A peer that sends more than that ignores THROTTLE.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from attrs import define


class ThrottleLine(Protocol):
    """The part of a connected link that asks the peer to stop."""

    @property
    def in_flight(self) -> int:
        """Bytes that may be under way when the peer has seen that it is to stop."""

    def throttle(self, id: int, on: bool, seen: Callable[[], None]) -> None:
        """Ask the peer to stop sending to a port, or to go on: see `LinkEnd.throttle`."""


@define
class Throttle:
    """What one port has asked of its peer."""

    #: True if the peer is to stop.
    on: bool = False
    _seen: bool = False
    _late: int = 0  # bytes that came since the peer has seen it
    _requests: int = 0  # which tells apart a request from the ones before it

    def ask(self, line: ThrottleLine, id: int, on: bool) -> None:
        """Ask the peer to stop, or to go on."""
        self.forget()
        self.on = on
        line.throttle(id, on, partial(self._was_seen, self._requests))

    def forget(self) -> None:
        """Start anew, with another peer: it may send."""
        self.on = self._seen = False
        self._late = 0
        self._requests += 1

    def is_ignored(self, line: ThrottleLine) -> bool:
        """True if the peer has sent more than it can have had under way."""
        return self._late > line.in_flight

    def came(self, size: int) -> None:
        """Count data from the peer."""
        if self._seen:
            self._late += size

    def _was_seen(self, request: int) -> None:
        if request == self._requests:
            self._seen = self.on

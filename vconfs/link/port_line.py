"""A port's line to its other side, which is the same at both ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vconfs.protocol.events import Buffer


class Line(Protocol):
    """The part of a connected end that its ports use, each with its id."""

    #: True if back-pressure is a THROTTLE message (v8); else it is the port's own ring (virtio1).
    throttles: bool

    @property
    def in_flight(self) -> int:
        """The most bytes that may be under way when the other side has seen the request to stop."""

    def has_room(self, port_id: int) -> bool:
        """True if a write would take something, as far as is known: see `want_room`."""

    def want_room(self, port_id: int) -> None:
        """Look for room to send. If there is none, call the port's `room_came` when there is."""

    def send_nowait(self, port_id: int, data: Buffer) -> int:
        """Send as much of `data` as there is room for; return its size or raise WouldBlock."""

    def send_later(self, port_id: int, data: Buffer) -> int:
        """Store some of `data` until the port's turn comes; return its size or raise WouldBlock."""

    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """Like `send_nowait`, but wait for a turn and for room; return 0 once not `wanted`."""

    def nudge(self, port_id: int) -> None:
        """Make the tasks that wait in `send` check whether that is still wanted."""

    def open_port(self, port_id: int, opened: bool) -> None:
        """Send the other side the message that the port was opened or closed on our side."""

    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None:
        """Ask the other side to stop sending, or to go on. `seen` is called when it has seen it."""

    def refill(self, port_id: int) -> None:
        """Take what the other side has put into the port's own ring, if there is one."""

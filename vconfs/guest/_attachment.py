"""What a port's inbox and outbox share: its line to the host, and its state."""

from __future__ import annotations

from typing import Protocol

from attrs import define, field

from vconfs.guest._port_states import FIRST, Event, State
from vconfs.guest.options import PortOptions
from vconfs.link.port_line import Line
from vconfs.link.taps import PortTap


class PortLine(Line, Protocol):
    """A port's line to its host: the part of a connected device that ports use."""

    #: True if `open_port` can raise OSError. It is then called at the open, which fails with it.
    can_refuse: bool


@define
class Counters:
    """Counts of what went through a port, and of what was dropped by rule."""

    bytes_in: int = 0
    bytes_out: int = 0
    dropped: int = 0  # bytes that were unread at the last close, or beyond the limit
    ignored: int = 0  # messages that the host may not send
    resets: int = 0  # times that the host went on sending after it was told to stop


@define
class MountEnd:
    """How far the end of the mount has come. All its ports share this, and so change together."""

    #: True once it has begun: no writes are accepted.
    begun: bool = False
    #: True if the hosts are also to send nothing more.
    holds: bool = False
    #: True once it is over: no call may wait any more.
    over: bool = False


@define(eq=False)
class Attachment:
    """A port's attachment to its device and host."""

    id: int
    options: PortOptions
    mount_end: MountEnd = field(factory=MountEnd)
    #: The name of the guest, if this is the host's side of its port; else empty.
    guest: str = ""
    counters: Counters = field(init=False, factory=Counters)
    state: State = field(init=False, default=FIRST)
    #: The line to the host, if the port's device is there and has the port.
    line: PortLine | None = field(init=False, default=None)
    #: Takes the port's output: the line or, for a console while it has none, the emergency line.
    way_out: PortLine | None = field(init=False, default=None)
    #: What to report to, if the port is watched.
    tap: PortTap | None = field(init=False, default=None)

    def happened(self, event: Event) -> bool:
        """Go to the state that follows this event. Return True if it is another one."""
        before = self.state
        self.state = after = before.after.get(event, before)
        if self.tap is not None and after.connected != before.connected:
            self.tap.happened("connect" if after.connected else "disconnect")
        return after is not before

    def attach(self, line: PortLine) -> None:
        """Use this line from now on."""
        self.line = self.way_out = line
        by_messages = line.throttles
        self.happened(Event.ATTACHED_BY_MESSAGES if by_messages else Event.ATTACHED_BY_RING)

    def use_emergency_line(self, line: PortLine) -> None:
        """Send output by this line until the next `attach`."""
        self.way_out = line
        self.happened(Event.EMERGENCY_LINE)

    def let_go(self, event: Event) -> PortLine | None:
        """Use no line any more, because of this event; return the one that was used."""
        line, self.line, self.way_out = self.line, None, None
        self.happened(event)
        return line

"""Taps: records of what passes through ports, for programs that watch them, at either end.

Theory of operation
-------------------
Each end has one `Taps`. A port that no tapper watches has no tap: for it, each transfer costs one
test. A port that is watched has a `PortTap`, to which the places report where bytes pass. Bytes
that are sent are reported before the other end is notified of them, because in one process it may
answer at once. A record is encoded once, and waits in the backlog of each tapper that wants it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from attrs import define, field, frozen

from vconfs.protocol import tap
from vconfs.protocol.events import Buffer
from vconfs.system.tasks import soon_in_portions


class TappedPort(Protocol):
    """The part of a port that its tap needs."""

    #: What to report to, if the port is watched.
    tap: PortTap | None

    @property
    def id(self) -> int:
        """The port's number."""

    @property
    def name(self) -> bytes:
        """The port's name, or nothing."""


P = TypeVar("P", bound=TappedPort)


@define(eq=False)
class Tapper:
    """A program that watches all ports, or those with the ids in `wanted`."""

    #: Called when there is something to take from the backlog, and when there is no more to come.
    on_record: Callable[[], None]
    wanted: frozenset[int] | None = None
    backlog: tap.TapBacklog = field(init=False, factory=tap.TapBacklog)
    #: True if the ports have ended: there is no more to come.
    ended: bool = field(init=False, default=False)

    def wants(self, port_id: int) -> bool:
        """True if this tapper watches the port with this id."""
        return self.wanted is None or port_id in self.wanted

    def put(self, record: tap.Record, line: bytes) -> None:
        """Queue a record, or count it as lost."""
        if self.backlog.put_record(record, line):
            self.on_record()


@frozen(eq=False)
class PortTap:
    """What a port that is watched reports to."""

    _port: TappedPort
    _tappers: list[Tapper]

    def came(self, data: Buffer) -> None:
        """Record data that came to this end."""
        self._moved("in", data)

    def sent(self, data: Buffer) -> None:
        """Record data that this end sends."""
        self._moved("out", data)

    def happened(self, event: str, **more: object) -> None:
        """Record an event; for their fields see `protocol.tap`."""
        self._put(self._record(event, more=more))

    def show_present(self, tapper: Tapper, *, connected: bool) -> None:
        """Show a new tapper that the port is there."""
        record = self._record("present", more={"connected": connected})
        tapper.put(record, tap.encode(record))

    def _moved(self, event: str, data: Buffer) -> None:
        for piece in tap.pieces(data):
            self._put(self._record(event, piece))

    def _record(
        self, event: str, data: bytes = b"", more: Mapping[str, object] | None = None
    ) -> tap.Record:
        port = self._port
        return tap.Record(time.time_ns(), event, port.id, port.name, data, more or {})

    def _put(self, record: tap.Record) -> None:
        line = b""
        for tapper in self._tappers:
            if tapper.backlog.has_room(record):
                line = line or tap.encode(record)
                tapper.put(record, line)
            else:
                tapper.backlog.lose_record(record)


class Taps(Generic[P]):
    """The tappers of the ports of one end; `connected` tells if a port's other side is."""

    def __init__(self, ports: Mapping[int, P], connected: Callable[[P], bool]) -> None:
        #: The taps of the ports that are watched.
        self.by_port: dict[int, PortTap] = {}
        self._ports = ports
        self._connected = connected
        self._tappers: list[Tapper] = []

    @property
    def is_full(self) -> bool:
        """True if there are as many tappers as there may be."""
        return len(self._tappers) >= tap.TAPPERS_MAX

    def begin(self, tapper: Tapper) -> None:
        """Let a tapper watch, and show it the ports that are there.

        This is also called again when the ports that it wants have changed. If there are many
        ports, it begins with some of them in later turns of the event loop.
        """
        if tapper not in self._tappers:
            self._tappers.append(tapper)
        in_order = [self._ports[port_id] for port_id in sorted(self._ports)]
        soon_in_portions(lambda port: self._begin_with(port, tapper), in_order)

    def _begin_with(self, port: P, tapper: Tapper) -> None:
        if tapper not in self._tappers or self._ports.get(port.id) is not port:
            return  # one of them has gone meanwhile
        self._join(port)
        if port.tap is not None and tapper.wants(port.id):
            port.tap.show_present(tapper, connected=self._connected(port))

    def end(self, tapper: Tapper) -> None:
        """Let a tapper watch no more."""
        if tapper in self._tappers:
            self._tappers.remove(tapper)
            self._renew()

    def close(self) -> None:
        """End all tappers, because the end whose ports they watch has ended."""
        tappers = self._tappers[:]
        self._tappers.clear()
        self._renew()
        for tapper in tappers:
            tapper.ended = True
            tapper.on_record()

    def added(self, port: P) -> None:
        """Watch a port that was added, if there is a tapper that wants it."""
        self._join(port)
        if port.tap is not None:
            port.tap.happened("add")

    def removed(self, port: P) -> None:
        """Show that a port was removed, and watch it no more."""
        if port.tap is not None:
            port.tap.happened("remove")
            port.tap = None
            del self.by_port[port.id]

    def _renew(self) -> None:
        self.by_port.clear()
        for port in self._ports.values():
            self._join(port)

    def _join(self, port: P) -> None:
        tappers = [tapper for tapper in self._tappers if tapper.wants(port.id)]
        port.tap = PortTap(port, tappers) if tappers else None
        if port.tap is not None:
            self.by_port[port.id] = port.tap
        else:
            self.by_port.pop(port.id, None)

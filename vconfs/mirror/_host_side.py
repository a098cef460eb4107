"""Joins the host's side of one port, as a `Port`, to the `HostPort` that serves the guest.

Theory of operation
-------------------
Nothing is queued twice. What the guest sends goes at once to the `Port`, whose queue has the size
of the port's host limit; when it is full, the guest is told to stop (v8), or what it sends stays in
its ring (virtio1). What programs write goes at once to the guest, or they wait for room as in a
guest's own mount.

`HostPort.on_change` leads to `HostSide.follow`, which makes the `Port` what the `HostPort` is:
attached while a guest is there, connected while the guest has the port open, throttled, named.
In the other direction, `_GuestLine` passes on what the `Port` asks of its line: the first open
connects the `HostPort`, and the last close disconnects it. Bytes that either of the two drops are
counted by both.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from attrs import define, field

from vconfs.guest.port import Port, PortLine
from vconfs.host.port import HostPort, HostPortLine
from vconfs.overrides import override
from vconfs.protocol.events import Buffer


@define(eq=False)
class _GuestLine(PortLine):
    """The line of a `Port` to the guest that has the port now."""

    _host_port: HostPort
    _port: Port
    line: HostPortLine
    throttles: bool
    can_refuse: bool = False

    @override
    @property
    def in_flight(self) -> int:
        return self.line.in_flight

    @override
    def has_room(self, port_id: int) -> bool:
        return self.line.has_room(port_id)

    @override
    def want_room(self, port_id: int) -> None:
        self.line.want_room(port_id)

    @override
    def send_nowait(self, port_id: int, data: Buffer) -> int:
        """If not everything was sent, the port is told when there is room again."""
        try:
            sent = self.line.send_nowait(port_id, data)
        except trio.WouldBlock:
            self.line.want_room(port_id)
            raise
        if sent < len(data):
            self.line.want_room(port_id)
        return self._sent(data, sent)

    @override
    def send_later(self, port_id: int, data: Buffer) -> int:
        return self._sent(data, self.line.send_later(port_id, data))

    @override
    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        return self._sent(data, await self.line.send(port_id, data, wanted))

    @override
    def nudge(self, port_id: int) -> None:
        self.line.nudge(port_id)

    @override
    def open_port(self, port_id: int, opened: bool) -> None:
        if opened:
            self._host_port.connect()
        else:
            self._host_port.disconnect()

    @override
    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None:
        self._host_port.hold_guest(on, seen)

    @override
    def refill(self, port_id: int) -> None:
        if not self.throttles:
            self.hold_when_full()
            self._host_port.refill()

    def hold_when_full(self) -> None:
        """Leave data in the port's own ring while the port has no space (virtio1)."""
        self._host_port.hold_guest(not self._port.wants_data)

    def _sent(self, data: Buffer, size: int) -> int:
        self._host_port.counters.bytes_out += size
        if size and self._port.tap is not None:
            self._port.tap.sent(memoryview(data)[:size])
        return size


@define(eq=False)
class HostSide:
    """The host's side of one port: its `Port`, and the `HostPort` that serves the guest."""

    host_port: HostPort
    port: Port
    #: Renames the port. Removes it, when the host end has removed it.
    _rename: Callable[[bytes], None]
    _remove: Callable[[], None]
    _line: _GuestLine | None = field(init=False, default=None)
    _guest_connected: bool = field(init=False, default=False)
    #: How many dropped bytes, and resets, both count.
    _dropped: int = field(init=False, default=0)
    _resets: int = field(init=False, default=0)

    def take(self, data: memoryview) -> int:
        """Take all of what the guest has sent."""
        self.port.feed(data)
        if self._line is not None and not self._line.throttles:
            self._line.hold_when_full()
        return len(data)

    def follow(self) -> None:
        """Make the port what the host end's port is now."""
        host_port, port = self.host_port, self.port
        if host_port.removed:
            self._remove()
            return
        if self._line is not None and host_port.line is not self._line.line:
            self._line = None
            port.detach()
        if self._line is None and host_port.line is not None:
            line = host_port.line
            self._line = _GuestLine(host_port, port, line, line.throttles)
            port.attach(self._line)
        if host_port.guest_connected != self._guest_connected:
            self._guest_connected = host_port.guest_connected
            port.set_connected(self._guest_connected)
        if host_port.guest_throttled != port.host_throttled:
            port.set_throttled(host_port.guest_throttled)
        port.host_cache = host_port.cache
        if host_port.throttled_by_hand != port.throttled_by_hand:
            port.hold_by_hand(host_port.throttled_by_hand)
        self._rename(host_port.name)

    def port_changed(self) -> None:
        """Pass on what nothing but the port itself tells: a last close without a guest, losses."""
        if self._line is None and not self.port.openers:
            self.host_port.disconnect()
        self.share_losses()

    def share_losses(self) -> None:
        """Let both ports count all bytes that either has dropped."""
        mine, its = self.port.counters, self.host_port.counters
        if more := mine.dropped - self._dropped:
            self._dropped = mine.dropped
            self.host_port.lost(more)  # which comes back here
        self._dropped = mine.dropped = its.dropped
        its.resets += mine.resets - self._resets
        self._resets = mine.resets

"""The driver: one connection of the guest end to its device.

It stands between the ports and the link. What comes in it hands to the dialect, and does what
the resulting event asks for; what the ports send it frames by the dialect and sends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import trio

from vconfs.link import Link
from vconfs.port import Port
from vconfs.ports import PortManager
from vconfs.protocol import events
from vconfs.protocol.dialect import Guest
from vconfs.protocol.events import Buffer, Event
from vconfs.sender import Sender

log = logging.getLogger(__name__)


class Driver:
    """Joins the ports of a manager to one link, until the link is lost."""

    def __init__(self, manager: PortManager, link: Link, end: Guest) -> None:
        self.throttles = end.throttles
        #: Whether all ports are known as soon as the driver has started.
        self.tells_all_ports = end.ports_in_config
        self.in_flight = link.in_flight
        #: Why the link was lost; empty: it was not, or was let go by `stop`.
        self.reason = ""
        #: Set when nothing more will come.
        self.stopped = trio.Event()
        #: Ports that found no room when they were polled: room is then a change of their state.
        self._without_room: set[int] = set()
        #: Ports whose hang-up has overtaken data that they are too full for (virtio1).
        self._hanging_up: set[int] = set()
        self._manager = manager
        self._link = link
        self._end = end
        self._sender = Sender(link, end)
        link.owner = self

    def start(self) -> None:
        """Bring the device up: learn its ports and ask for their names."""
        self.config_changed()
        self._sender.post(self._end.device_ready())
        for queue in range(0, self._end.queues, 2):
            self.received(queue)

    def stop(self, reason: str = "") -> None:
        """Let the device go; the ports stay, hung up."""
        if self.stopped.is_set():
            return
        self.reason = reason
        self.stopped.set()
        self._sender.close()
        for port in list(self._manager.ports.values()):
            port.detach()

    def forget_missing_ports(self) -> None:
        """Remove the ports that an earlier device had and this one has not announced."""
        for port in list(self._manager.ports.values()):
            if not port.attached:
                self._manager.remove(port.id)

    # --- what the link tells --------------------------------------------------------------

    def received(self, queue: int) -> None:
        """Handle every buffer that came on `queue`, as far as their ports want them now."""
        link, receive = self._link, self._end.receive
        if self.stopped.is_set() or not self._wants(queue):
            return
        while (buffer := link.receive(queue)) is not None:
            event = receive(queue, buffer)
            self._handlers[type(event)](self, event)
            link.done(queue)
            if not self._wants(queue):
                break
        link.flush(queue)

    def room(self, queue: int) -> None:
        """Send what waited for room on `queue`, and let pollers know."""
        self._sender.room(queue)
        if not self._without_room:
            return
        for id in [id for id in self._without_room if self._sender.has_room(id)]:
            self._without_room.discard(id)
            if id in self._manager.ports:
                self._manager.ports[id].room_came()

    def config_changed(self) -> None:
        """Look at the config space again."""
        for event in self._end.receive_config(self._link.config):
            self._handlers[type(event)](self, event)

    def lost(self, reason: str) -> None:
        """Hang up every port."""
        log.warning("device lost: %s", reason)
        self.stop(reason)

    # --- what the ports ask for -----------------------------------------------------------

    def has_room(self, id: int) -> bool:
        """Whether a write of this port would take something; if not, it is told when it would."""
        room = self._sender.has_room(id)
        if not room:
            self._without_room.add(id)
        return room

    def send_nowait(self, id: int, data: Buffer) -> int:
        """See `Sender.send_nowait`."""
        return self._sender.send_nowait(id, data)

    async def send(self, id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """See `Sender.send`."""
        return await self._sender.send(id, data, wanted)

    def nudge(self, id: int) -> None:
        """See `Sender.nudge`."""
        self._sender.nudge(id)

    def open_port(self, id: int, opened: bool) -> None:
        """Tell the host that the port was opened, or closed."""
        self._sender.post(self._end.port_open(id, opened))

    def throttle(self, id: int, on: bool) -> None:
        """Ask the host to stop sending to the port, or to go on."""
        self._sender.post(self._end.throttle(id, on))

    def refill(self, port: Port) -> None:
        """The port has space again: fetch what its own queue holds (virtio1)."""
        if not self.throttles and not self._is_behind(port) and port.id in self._hanging_up:
            self._hanging_up.discard(port.id)
            port.set_connected(False)

    # --- events ---------------------------------------------------------------------------

    def _wants(self, queue: int) -> bool:
        """Whether buffers of `queue` can be taken: one port's full queue holds back its ring."""
        if self.throttles:
            return True
        id = self._end.port_of(queue)
        port = None if id is None else self._manager.ports.get(id)
        return port is None or port.queued < port.limit

    def _port(self, event: Any) -> Port | None:
        port = self._manager.ports.get(event.id)
        if port is None:
            self._manager.ignore(event.id, f"{type(event).__name__} for unknown port {event.id}")
        return port

    def _data(self, event: events.Data) -> None:
        if port := self._port(event):
            port.feed(event.data)

    def _added(self, event: events.PortAdded) -> None:
        port = self._manager.add(event.id)
        if not port.attached:
            port.attach(self)
        self._sender.post(self._end.port_ready(event.id))

    def _removed(self, event: events.PortRemoved) -> None:
        if self._port(event):
            self._manager.remove(event.id)

    def _opened(self, event: events.PortOpened) -> None:
        port = self._port(event)
        if port is None:
            return
        if port.id in self._hanging_up:  # there is a new connection: the old one ends here
            self._hanging_up.discard(port.id)
            port.set_connected(False)
        if not event.opened and self._is_behind(port):
            self._hanging_up.add(port.id)
        else:
            port.set_connected(event.opened)

    def _is_behind(self, port: Port) -> bool:
        """Fetch what was sent before a hang-up (virtio1); whether the port is too full for it."""
        if self.throttles:
            return False
        queue = self._end.receive_queue(port.id)
        self.received(queue)
        return not self._wants(queue)

    def _named(self, event: events.PortNamed) -> None:
        if port := self._port(event):
            self._manager.rename(port, event.name)

    def _name_stale(self, event: events.NameStale) -> None:
        self._sender.post(self._end.port_ready(event.id))

    def _console(self, event: events.ConsolePort) -> None:
        if port := self._port(event):
            port.become_console()

    def _cache(self, event: events.CacheSet) -> None:
        if port := self._port(event):
            port.host_cache = event.cache

    def _throttled(self, event: events.Throttled) -> None:
        if port := self._port(event):
            port.set_throttled(event.throttled)

    def _limit(self, event: events.LimitSet) -> None:
        if port := self._port(event):
            port.set_limit(event.limit)

    def _resized(self, event: events.Resized) -> None:
        if port := self._port(event):
            port.resize(event.cols, event.rows)

    def _ignored(self, event: events.Ignored) -> None:
        self._manager.ignore(event.id, event.reason)

    def _unexpected(self, event: Event) -> None:
        raise AssertionError(f"the guest end of a dialect gave {event}")

    _handlers: Mapping[type, Callable[[Driver, Any], None]] = {
        events.Data: _data,
        events.PortAdded: _added,
        events.PortRemoved: _removed,
        events.PortOpened: _opened,
        events.PortNamed: _named,
        events.NameStale: _name_stale,
        events.ConsolePort: _console,
        events.CacheSet: _cache,
        events.Throttled: _throttled,
        events.LimitSet: _limit,
        events.Resized: _resized,
        events.Ignored: _ignored,
        events.NameAsked: _unexpected,
        events.PortReady: _unexpected,
        events.DeviceReady: _unexpected,
    }

"""The device's side of one connection to a guest: the host ports' way to it.

It mirrors the guest end's driver: what the guest sends it hands to the dialect, and does what the
resulting event asks for; what the host ports send it frames by the dialect and sends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import trio

from vconfs.host.port import HostPort
from vconfs.link import Link
from vconfs.protocol import events
from vconfs.protocol.dialect import Host as HostDialect
from vconfs.protocol.events import Buffer, Event
from vconfs.sender import Sender

log = logging.getLogger(__name__)


class Backend:
    """Joins the ports of a host to one guest, until that is lost.

    A port is spoken of only after the guest has taken it up (by asking its name in v8, by
    PORT_READY in virtio1): it is then introduced with its name and all that is known of it.
    """

    def __init__(
        self,
        ports: Mapping[int, HostPort],
        link: Link,
        end: HostDialect,
        announce_config: Callable[[], None],
    ) -> None:
        self.throttles = end.throttles
        self.in_flight = link.in_flight
        #: Why the guest was lost; empty: it was not, or was let go by `stop`.
        self.reason = ""
        #: Set when nothing more will come.
        self.stopped = trio.Event()
        #: Messages that the guest may not send.
        self.ignored = 0
        self._ports = ports
        self._link = link
        self._end = end
        self._announce_config = announce_config
        self._sender = Sender(link, end)
        self._introduced: set[int] = set()
        #: Ports whose close has overtaken data that they are too full for (virtio1).
        self._closing: set[int] = set()
        self._pumping: set[int] = set()
        self._logged: set[str] = set()
        link.owner = self

    def start(self) -> None:
        """Serve the guest: its driver has set the queues up."""
        if not self._end.multiport and 0 in self._ports:
            self._introduce(self._ports[0])
            self._ports[0].set_guest_connected(True)
        for queue in range(1, self._end.queues, 2):
            self.received(queue)

    def stop(self, reason: str = "") -> None:
        """Let the guest go."""
        if self.stopped.is_set():
            return
        self.reason = reason
        self.stopped.set()
        self._sender.close()
        for id in self._introduced:
            if id in self._ports:
                self._ports[id].detach()
        self._introduced.clear()

    # --- what the link tells --------------------------------------------------------------

    def received(self, queue: int) -> None:
        """Handle every buffer that the guest sent on `queue`, as far as their ports want them."""
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
        """Send what waited for room on `queue`."""
        self._sender.room(queue)
        if self._pumping:
            ports, self._pumping = self._pumping, set()
            for id in ports & self._ports.keys():
                self._ports[id].pump()

    def config_changed(self) -> None:
        """Never called: the config space is ours."""

    def lost(self, reason: str) -> None:
        """Let the guest go, for it left or broke a rule."""
        log.warning("guest lost: %s", reason)
        self.stop(reason)

    # --- what becomes of the host's ports -------------------------------------------------

    def port_added(self, id: int, config_changed: bool) -> None:
        """Announce a port."""
        if config_changed and self._end.ports_in_config:
            self._announce_config()
        else:
            self._sender.post(self._end.port_add(id))

    def port_removed(self, id: int, config_changed: bool) -> None:
        """Take a port away; a guest that cannot be told so sees it hung up."""
        self._introduced.discard(id)
        if config_changed and self._end.ports_in_config:
            self._announce_config()
        else:
            gone = self._end.port_remove(id) or self._end.port_open(id, False)
            self._sender.post(gone)

    def port_renamed(self, port: HostPort) -> None:
        """Tell the port's new name."""
        if port.id in self._introduced:
            self._sender.post(self._end.port_name(port.id, port.name))

    def port_configured(self, port: HostPort) -> None:
        """Tell what the port's settings are now."""
        if port.id in self._introduced:
            self._sender.post(self._end.cache_buffers(port.id, port.cache))
            if port.limit:
                self._sender.post(self._end.buffer_limit(port.id, port.limit))

    def port_resized(self, port: HostPort) -> None:
        """Tell the size of the port's console."""
        if port.id in self._introduced:
            self._sender.post(self._end.resize(port.id, *port.size))

    # --- what the host ports ask for ------------------------------------------------------

    def room_for(self, id: int) -> int:
        """How many bytes the guest has buffers for."""
        queue = self._end.data_queue(id)
        return self._link.room_for(queue, self._end.header_size)

    def pump_later(self, id: int) -> None:
        """Ask the port for more of its source when there is room."""
        self._pumping.add(id)
        self._link.want_room(self._end.data_queue(id))

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
        """Tell the guest that somebody is there, or nobody."""
        self._sender.post(self._end.port_open(id, opened))

    def throttle(self, id: int, on: bool) -> None:
        """Ask the guest to stop sending to the port, or to go on."""
        self._sender.post(self._end.throttle(id, on))

    def refill(self, id: int) -> None:
        """The port has space again: fetch what its own queue holds (virtio1)."""
        port = self._ports.get(id)
        if port is not None and not self._is_behind(port) and id in self._closing:
            self._closing.discard(id)
            port.set_guest_connected(False)

    # --- events ---------------------------------------------------------------------------

    def _wants(self, queue: int) -> bool:
        if self.throttles:
            return True
        id = self._end.port_of(queue)
        port = None if id is None else self._ports.get(id)
        return port is None or port.wants_data

    def _introduce(self, port: HostPort) -> None:
        id, end, post = port.id, self._end, self._sender.post
        if id in self._introduced:
            return
        self._introduced.add(id)
        if port.spec.console:
            post(end.console_port(id))
            if port.size != (0, 0):
                post(end.resize(id, *port.size))
        if port.cache:
            post(end.cache_buffers(id, True))
        if port.limit:
            post(end.buffer_limit(id, port.limit))
        port.attach(self)

    def _port(self, event: Any) -> HostPort | None:
        port = self._ports.get(event.id)
        if port is None or event.id not in self._introduced:
            self._ignore(f"{type(event).__name__} for port {event.id}, which the guest has not")
            return None
        return port

    def _data(self, event: events.Data) -> None:
        if port := self._port(event):
            port.feed(event.data, event.size)

    def _ready(self, event: events.DeviceReady) -> None:
        if event.ready:
            for id in sorted(self._ports):
                self._sender.post(self._end.port_add(id))

    def _port_ready(self, event: events.PortReady) -> None:
        port = self._ports.get(event.id)
        if port is None:
            self._ignore(f"PORT_READY for port {event.id}, which is not there")
        elif event.ready:
            self._tell_name(port)

    def _name_asked(self, event: events.NameAsked) -> None:
        port = self._ports.get(event.id)
        if port is None:
            self._sender.post(self._end.port_remove(event.id))  # a gap in the ids
        else:
            self._tell_name(port)

    def _tell_name(self, port: HostPort) -> None:
        if port.name or port.id in self._introduced:
            self._sender.post(self._end.port_name(port.id, port.name))
        self._introduce(port)

    def _opened(self, event: events.PortOpened) -> None:
        port = self._port(event)
        if port is None:
            return
        if port.id in self._closing:  # the guest has opened it again: that ends the close
            self._closing.discard(port.id)
            port.set_guest_connected(False)
        if not event.opened and self._is_behind(port):
            self._closing.add(port.id)
        else:
            port.set_guest_connected(event.opened)

    def _is_behind(self, port: HostPort) -> bool:
        """Fetch what was sent before a close (virtio1); whether the port is too full for it."""
        if self.throttles:
            return False
        queue = self._end.receive_queue(port.id)
        self.received(queue)
        return not self._wants(queue)

    def _throttled(self, event: events.Throttled) -> None:
        if port := self._port(event):
            port.set_guest_throttled(event.throttled)

    def _ignored(self, event: events.Ignored) -> None:
        self._ignore(event.reason)

    def _ignore(self, reason: str) -> None:
        self.ignored += 1
        if reason not in self._logged and len(self._logged) < 1000:
            self._logged.add(reason)
            log.warning("guest: %s", reason)

    def _unexpected(self, event: Event) -> None:
        raise AssertionError(f"the host end of a dialect gave {event}")

    _handlers: Mapping[type, Callable[[Backend, Any], None]] = {
        events.Data: _data,
        events.DeviceReady: _ready,
        events.PortReady: _port_ready,
        events.NameAsked: _name_asked,
        events.PortOpened: _opened,
        events.Throttled: _throttled,
        events.Ignored: _ignored,
        events.PortAdded: _unexpected,
        events.PortRemoved: _unexpected,
        events.PortNamed: _unexpected,
        events.NameStale: _unexpected,
        events.ConsolePort: _unexpected,
        events.CacheSet: _unexpected,
        events.LimitSet: _unexpected,
        events.Resized: _unexpected,
    }

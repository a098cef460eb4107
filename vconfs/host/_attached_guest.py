"""The host end's side of one connection to a guest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final, assert_never

import trio

from vconfs.host.port import HostPort
from vconfs.link.end import LinkEnd
from vconfs.link.link import Link
from vconfs.link.taps import PortTap
from vconfs.protocol import events
from vconfs.protocol.dialect import Host as HostDialect
from vconfs.protocol.events import Buffer, Event
from vconfs.system.log_once import LogOnce

log: Final = logging.getLogger(__name__)

#: How many turns of the event loop a guest that leaves may fill with what it has sent.
_LAST_TURNS: Final = 128


class AttachedGuest(LinkEnd[HostPort, HostDialect]):
    """Joins the ports of a host to one guest, until the guest is lost.

    Nothing is sent about a port until the guest has taken it up (by asking for its name in v8, by
    PORT_READY in virtio1). Then the port is introduced: its name and all its settings are sent.
    """

    peer = "guest"
    port_word = "port "

    def __init__(
        self,
        ports: Mapping[int, HostPort],
        link: Link,
        end: HostDialect,
        announce_config: Callable[[], None],
        taps: Mapping[int, PortTap],
    ) -> None:
        super().__init__(link, end, ports, taps)
        self._announce_config = announce_config
        self._introduced: set[int] = set()
        #: Ports that were removed. What the guest sent before it learned of that may still arrive.
        self._removed: set[int] = set()
        self._trouble = LogOnce(log)

    @property
    def max_ports(self) -> int:
        """One more than the largest port id that the guest can have."""
        return self._end.max_ports

    def start(self) -> None:
        """Serve the guest, whose driver has set up the queues."""
        if not self._end.multiport and 0 in self._ports:
            self._introduce(self._ports[0])
            self._ports[0].set_guest_connected(True)
        if unseen := [port_id for port_id in sorted(self._ports) if port_id >= self.max_ports]:
            ids = ", ".join(map(str, unseen))
            message = "%s: its port ids end at %d, it cannot see %s"
            log.warning(message, self.peer, self.max_ports - 1, ids)
        for queue in range(1, self._end.queues, 2):
            self.received(queue)

    async def take_rest(self) -> None:
        """Take what a guest that leaves has sent to our ports, however full they are.

        Other tasks have turns meanwhile. A guest that goes on sending is not listened to for ever.
        """
        turns = _LAST_TURNS
        for queue in {self._end.receive_queue(port_id) for port_id in self._introduced}:
            if not self.stopped.is_set():
                self._take_all(queue)
            while self._link.is_spent and turns and not self.stopped.is_set():
                turns -= 1
                await trio.lowlevel.checkpoint()
                self._take_all(queue)

    def _detach_ports(self) -> None:
        for queue in range(1, self._end.queues, 2):
            self._link.release(queue)  # so that the guest knows what we have taken
        for port_id in self._introduced:
            if port_id in self._ports:
                self._ports[port_id].detach()
        self._introduced.clear()

    # --- what the link reports ------------------------------------------------------------

    def config_changed(self) -> None:
        """Do nothing: this is never called, because the config space is ours."""

    # --- changes of the host's ports ------------------------------------------------------

    def port_added(self, port_id: int, config_changed: bool) -> None:
        """Announce a port."""
        if config_changed and self._end.ports_in_config:
            self._announce_config()
        else:
            self._sender.post(self._end.port_add(port_id))

    def port_leaves(self, port_id: int) -> None:
        """Take what the guest has sent to a port that is about to be removed."""
        if port_id in self._introduced:
            self._take_last(port_id)
            self._ports[port_id].counters.dropped += self._sender.forget(port_id)

    def port_removed(self, port_id: int, config_changed: bool) -> None:
        """Announce that a port is gone; in a dialect that cannot say so, hang it up."""
        self._introduced.discard(port_id)
        self._removed.add(port_id)
        if config_changed and self._end.ports_in_config:
            self._announce_config()
        else:
            gone = self._end.port_remove(port_id) or self._end.port_open(port_id, False)
            self._sender.post(gone)

    def port_renamed(self, port: HostPort) -> None:
        """Send the port's new name."""
        if port.id in self._introduced:
            self._sender.post(self._end.port_name(port.id, port.name))

    def port_configured(self, port: HostPort) -> None:
        """Send the port's present settings."""
        if port.id in self._introduced:
            self._sender.post(self._end.cache_buffers(port.id, port.cache))
            if port.limit:
                self._sender.post(self._end.buffer_limit(port.id, port.limit))

    def port_resized(self, port: HostPort) -> None:
        """Send the size of the port's console."""
        if port.id not in self._introduced:
            return
        if message := self._end.resize(port.id, *port.size):
            self._sender.post(message)
        elif port.id == 0:
            self._announce_config()  # the config space has the size, too

    # --- what the host ports ask for ------------------------------------------------------

    def offer(self, port_id: int, give: Callable[[int], Buffer]) -> None:
        """At each turn of this port send what `give` returns, until it returns nothing."""
        self._sender.offer(port_id, give)

    # --- events ---------------------------------------------------------------------------

    def _introduce(self, port: HostPort) -> None:
        port_id, end, post = port.id, self._end, self._sender.post
        if port_id in self._introduced:
            return
        self._introduced.add(port_id)
        self._removed.discard(port_id)
        if port.spec.console:
            post(end.console_port(port_id))
            if port.size != (0, 0):
                post(end.resize(port_id, *port.size))
        if port.cache:
            post(end.cache_buffers(port_id, True))
        if port.limit:
            post(end.buffer_limit(port_id, port.limit))
        port.attach(self)

    def _handle(self, event: Event) -> None:
        match event:
            case events.Data():
                if port := self._find(event.id, event):
                    port.feed(event.data, event.size)
            case events.DeviceReady():
                if event.ready:
                    self._add_all()
            case events.PortReady():
                self._port_ready(event.id, event.ready)
            case events.NameAsked():
                self._name_asked(event.id)
            case events.PortOpened():
                if port := self._find(event.id, event):
                    self._opened_by_peer(port, event.opened)
            case events.Throttled():
                if port := self._find(event.id, event):
                    port.set_guest_throttled(event.throttled)
            case events.Ignored():
                self._ignore(event.reason)
            case (
                events.PortAdded()
                | events.PortRemoved()
                | events.PortNamed()
                | events.NameStale()
                | events.ConsolePort()
                | events.CacheSet()
                | events.LimitSet()
                | events.Resized()
            ):
                raise AssertionError(f"the host's end of a dialect gave {event}")
            case _:
                assert_never(event)

    def _find(self, port_id: int, event: Event) -> HostPort | None:
        """Return the port that an event is about, or None if the guest has no such port."""
        port = self._ports.get(port_id)
        if port is None or port_id not in self._introduced:
            if port_id not in self._removed:
                self._ignore(f"{type(event).__name__} for port {port_id}, which the guest has not")
            return None
        return port

    def _add_all(self) -> None:
        for port_id in sorted(self._ports):
            self._sender.post(self._end.port_add(port_id))

    def _port_ready(self, port_id: int, ready: bool) -> None:
        port = self._ports.get(port_id)
        if port is None and port_id in self._removed:
            return
        if port is None:
            self._ignore(f"PORT_READY for port {port_id}, which is not there")
        elif ready:
            self._tell_name(port)

    def _name_asked(self, port_id: int) -> None:
        port = self._ports.get(port_id)
        if port is None:
            self._sender.post(self._end.port_remove(port_id))  # a gap in the ids
            if port_id < self.max_ports:
                self._removed.add(port_id)
        else:
            self._tell_name(port)

    def _tell_name(self, port: HostPort) -> None:
        if port.name or port.id in self._introduced:
            self._sender.post(self._end.port_name(port.id, port.name))
        self._introduce(port)

    def _set_connected(self, port: HostPort, connected: bool) -> None:
        port.set_guest_connected(connected)

    def _ignore(self, reason: str) -> None:
        self._trouble.warning(reason, "%s: %s", self.peer, reason)

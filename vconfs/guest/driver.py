"""The driver: one connection of the guest end to its device."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, ClassVar, Final

import trio

from vconfs.guest.emergency import CONSOLE, EmergencyLine
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.link.end import LinkEnd
from vconfs.link.link import Link, OpenDevice
from vconfs.protocol import events
from vconfs.protocol.dialect import Guest
from vconfs.protocol.events import Buffer, Event

#: Bytes in a buffer from which on it stays where it is until it is read.
_WORTH_HOLDING: Final = 1 << 16
#: Events of the config space that are handled at once: a port that is added takes some 50 µs.
_CONFIG_TURN: Final = 256


class Driver(LinkEnd[Port]):
    """Joins the ports of a manager to one link, until the link is lost."""

    peer = "device"
    can_refuse = False
    port_word = "vcon"

    def __init__(self, manager: PortManager, link: Link, end: Guest) -> None:
        super().__init__(link, end, manager.ports)
        #: Ports that were removed: what the host sent before that may still come.
        self._removed_ids: set[int] = set()
        #: What the config space told and was not handled yet.
        self._coming: deque[Event] = deque()
        #: It has changed meanwhile, and data has come on these queues.
        self._config_changed = False
        self._kept_back: set[int] = set()
        #: Ports that found no room when they were polled: room is then a change of their state.
        self._without_room: set[int] = set()
        #: Ports with new data, in order, of which nobody was told yet.
        self._fed: dict[Port, None] = {}
        self._manager = manager
        self._end = end

    def start(self) -> None:
        """Bring the device up: learn its ports and ask for their names."""
        self._link.start()
        self._let_console_speak()
        self.config_changed()
        self._sender.post(self._end.device_ready())
        for queue in range(0, self._end.queues, 2):
            self.received(queue)

    def take_rest(self) -> None:
        """Take what the device has sent and we have not looked at yet, before it is let go."""
        for queue in range(0, self._end.queues, 2):
            self.received(queue)

    def _let_console_speak(self) -> None:
        """Take output of a console that is known from before, until its port comes."""
        port = self._manager.ports.get(CONSOLE)
        line = EmergencyLine(self._link, self._end)
        if port is not None and port.console and line.works:
            port.use_emergency_line(line)

    def _detach_ports(self) -> None:
        for port in list(self._manager.ports.values()):
            port.detach()

    # --- the end of the mount: see draining.py --------------------------------------------

    def begin_ending(self) -> None:
        """Accept nothing more from either side."""
        self._manager.begin_ending(hold=True)

    def owed(self) -> Mapping[int, int]:
        """Look at how many bytes each port owes to the host."""
        return self.untaken()

    def dropped_by_host(self) -> Mapping[int, int]:
        """Nothing: what this end drops is counted by its ports."""
        return {}

    # --- what the link tells --------------------------------------------------------------

    def _take(self, queue: int, port: Port | None) -> None:
        """Take much at once from a port's own queue (virtio1), where nothing but its data comes.

        It ends with the ring, for nothing is given back before the flush.
        """
        if port is None:
            super()._take(queue, None)
            return
        link = self._link
        while port.wants_data and (buffers := link.receive_many(queue, port.space)):
            if len(buffers) == 1:
                self._put(port, buffers[0])
            else:
                port.put(b"".join(buffers))
                self._fed[port] = None
            link.done_many(queue, len(buffers))
        link.flush(queue)
        self._taken()

    def room(self, queue: int) -> None:
        """Send what waited for room on `queue`, and let pollers know."""
        self._sender.room(queue)
        self._tell_room()

    def _tell_room(self) -> None:
        if not self._without_room:
            return
        for id in [id for id in self._without_room if self.has_room(id)]:
            self._without_room.discard(id)
            if id in self._manager.ports:
                self._manager.ports[id].room_came()

    @property
    def tells_all_ports(self) -> bool:
        """True if all ports are known by now."""
        return self._end.ports_in_config and not self._coming

    def received(self, queue: int) -> None:
        """Handle what came, but not before the ports that the config space told of are there."""
        if self._coming:
            self._kept_back.add(queue)
        else:
            super().received(queue)

    def config_changed(self) -> None:
        """Look at the config space again."""
        if self._coming:
            self._config_changed = True
        else:
            self._coming.extend(self._end.receive_config(self._link.config))
            self._take_coming()

    def _take_coming(self) -> None:
        """Handle some of what the config space told, and the others when tasks had their turn."""
        for _ in range(min(_CONFIG_TURN, len(self._coming))):
            event = self._coming.popleft()
            self.handlers[type(event)](self, event)
        if self._coming:
            trio.lowlevel.current_trio_token().run_sync_soon(self._go_on, idempotent=True)
            return
        if self._config_changed:
            self._config_changed = False
            self.config_changed()
        while self._kept_back and not self._coming:
            self.received(self._kept_back.pop())

    def _go_on(self) -> None:
        if self.stopped.is_set():
            self._coming.clear()
        self._take_coming()

    # --- what the ports ask for -----------------------------------------------------------

    def has_room(self, id: int) -> bool:
        """Whether a write of this port would take something; if not, it is told when it would."""
        room = self._sender.has_room(id) or (self.throttles and self._sender.can_deposit(id))
        if not room:
            self._without_room.add(id)
            self._link.want_room(self._end.data_queue(id))
        return room

    def send_nowait(self, id: int, data: Buffer) -> int:
        """See `Sender.send_nowait`; who could not send all is told when there is room again."""
        try:
            sent = self._sender.send_nowait(id, data)
        except trio.WouldBlock:
            self.has_room(id)
            raise
        if sent < len(data):
            self.has_room(id)
        self._tell_room()
        return sent

    def send_later(self, id: int, data: Buffer) -> int:
        """See `Sender.deposit`; where a port has a queue of its own, there is nobody to pass."""
        if not self.throttles:
            raise trio.WouldBlock
        return self._sender.deposit(id, data)

    async def send(self, id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """See `Sender.send`; the others who found the queue taken are told that it is free."""
        try:
            return await super().send(id, data, wanted)
        finally:
            self._tell_room()

    # --- events ---------------------------------------------------------------------------

    def _port(self, event: Any) -> Port | None:
        port = self._manager.ports.get(event.id)
        if port is None and event.id not in self._removed_ids:
            self._manager.ignore(event.id, f"{type(event).__name__} for unknown port {event.id}")
        return port

    def _data(self, event: events.Data) -> None:
        if port := self._port(event):
            self._put(port, event.data)

    def _put(self, port: Port, data: memoryview) -> None:
        give_back = None
        if len(data) >= _WORTH_HOLDING:
            give_back = self._link.hold(self._end.receive_queue(port.id))
        port.put(data, give_back)
        self._fed[port] = None

    def _taken(self) -> None:
        fed, self._fed = self._fed, {}
        for port in fed:
            port.fed()

    def _added(self, event: events.PortAdded) -> None:
        self._removed_ids.discard(event.id)
        port = self._manager.add(event.id)
        ready = partial(self._sender.post, self._end.port_ready(event.id))
        if port.attached:
            ready()
        else:
            port.attach(self, ready)

    def _removed(self, event: events.PortRemoved) -> None:
        if event.id in self._manager.ports:  # v8's config space tells of gaps again
            self._take_last(event.id)
            self._manager.ports[event.id].counters.dropped += self._sender.forget(event.id)
            self._manager.remove(event.id)
            self._removed_ids.add(event.id)

    def _opened(self, event: events.PortOpened) -> None:
        if port := self._port(event):
            self._opened_by_peer(port, event.opened)

    def _set_connected(self, port: Port, connected: bool) -> None:
        port.set_connected(connected)

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

    handlers: ClassVar[Mapping[type, Callable[[Any, Any], None]]] = {
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
        events.NameAsked: LinkEnd._unexpected,
        events.PortReady: LinkEnd._unexpected,
        events.DeviceReady: LinkEnd._unexpected,
    }


@asynccontextmanager
async def drive(
    manager: PortManager, device: AbstractAsyncContextManager[OpenDevice]
) -> AsyncIterator[Driver]:
    """Join the ports of `manager` to a device for as long as the block runs."""
    async with device as (link, end):
        driver = Driver(manager, link, end)
        driver.start()
        try:
            yield driver
        finally:
            driver.take_rest()
            driver.stop()

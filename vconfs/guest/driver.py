"""The driver: one connection of the guest end to its device."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, ClassVar, Final

import trio

from vconfs.guest._emergency import CONSOLE, EmergencyLine
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.link.end import LinkEnd
from vconfs.link.link import Link, OpenDevice, leave_soon
from vconfs.protocol import events
from vconfs.protocol.dialect import Guest
from vconfs.protocol.events import Buffer, Event
from vconfs.system.tasks import PORTION

#: A received buffer of at least this many bytes stays in place until it is read, not copied.
_WORTH_HOLDING: Final = 1 << 16


class Driver(LinkEnd[Port]):
    """The guest end of one link: connects the ports of a manager to it until the link is lost."""

    peer = "device"
    can_refuse = False
    port_word = "vcon"

    def __init__(self, manager: PortManager, link: Link, end: Guest) -> None:
        super().__init__(link, end, manager.ports)
        #: Ports that were removed: data that the host sent before may still come.
        self._removed_ids: set[int] = set()
        #: Events from the config space that are not handled yet.
        self._coming: deque[Event] = deque()
        #: Ports that have no device any more, and are not told yet.
        self._leaving: deque[Port] = deque()
        #: Set when all ports have been told that the device is gone.
        self.detached: trio.Event = trio.Event()
        #: Whether the config space has changed meanwhile, and the queues on which data has come.
        self._config_changed = False
        self._kept_back: set[int] = set()
        #: Ports that had no room to send when polled: when they have some, their pollers are told.
        self._without_room: set[int] = set()
        #: Ports with new data, in order, whose readers are not woken yet.
        self._fed: dict[Port, None] = {}
        self._manager = manager
        self._end = end

    def start(self) -> None:
        """Start the device: learn its ports and ask for their names."""
        self._link.start()
        self._let_console_speak()
        self.config_changed()
        self._sender.post(self._end.device_ready())
        for queue in range(0, self._end.queues, 2):
            self.received(queue)

    def take_rest(self) -> None:
        """Receive what the device has already sent, before it is closed."""
        for queue in range(0, self._end.queues, 2):
            self.received(queue)

    def _let_console_speak(self) -> None:
        """Accept output of a console that an earlier device had, until its port is added."""
        port = self._manager.ports.get(CONSOLE)
        line = EmergencyLine(self._link, self._end)
        if port is not None and port.console and line.works:
            port.use_emergency_line(line)

    def _detach_ports(self) -> None:
        self._leaving.extend(self._manager.ports.values())
        self._detach_some()

    def _detach_some(self) -> None:
        """Detach some ports; detach the rest after other tasks have had a turn."""
        for _ in range(min(PORTION, len(self._leaving))):
            port = self._leaving.popleft()
            if not port.removed:
                port.detach()
        if self._leaving:
            trio.lowlevel.current_trio_token().run_sync_soon(self._detach_some)
        else:
            self.detached.set()

    # --- the end of the mount: see draining.py --------------------------------------------

    def begin_ending(self) -> None:
        """Accept nothing more from either side."""
        self._manager.begin_ending(hold=True)

    def dropped_by_host(self) -> Mapping[int, int]:
        """Return nothing: bytes that this end drops are counted by its ports."""
        return {}

    # --- called by the link ---------------------------------------------------------------

    def _take(self, queue: int, port: Port | None) -> bool:
        """Take several buffers per call from a port's own queue (virtio1), which has only its data.

        The loop ends with the ring, because no buffer goes back to the device before the flush.
        """
        if port is None:
            return super()._take(queue, None)
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
        return False

    def room(self, queue: int) -> None:
        """Send what waited for room on `queue`, and notify pollers."""
        self._sender.room(queue)
        self._tell_room()

    def _tell_room(self) -> None:
        if not self._without_room:
            return
        for port_id in [port_id for port_id in self._without_room if self.has_room(port_id)]:
            self._without_room.discard(port_id)
            if port_id in self._manager.ports:
                self._manager.ports[port_id].room_came()

    @property
    def tells_all_ports(self) -> bool:
        """True if all ports are known by now."""
        return self._end.ports_in_config and not self._coming

    def received(self, queue: int) -> None:
        """Handle buffers on `queue`, or keep them until all ports in the config space are added."""
        if self._coming:
            self._kept_back.add(queue)
        else:
            super().received(queue)

    def config_changed(self) -> None:
        """Read the config space again."""
        if self._coming:
            self._config_changed = True
        else:
            self._coming.extend(self._end.receive_config(self._link.config))
            self._take_coming()

    def _take_coming(self) -> None:
        """Handle some config space events; handle the rest after other tasks have had a turn."""
        for _ in range(min(PORTION, len(self._coming))):
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

    # --- called by the ports --------------------------------------------------------------

    def has_room(self, port_id: int) -> bool:
        """True if a write of this port would take something. If not, tell it when one would."""
        room = self._sender.has_room(port_id) or (
            self.throttles and self._sender.can_deposit(port_id)
        )
        if not room:
            self._without_room.add(port_id)
            self._link.want_room(self._end.data_queue(port_id))
        return room

    def send_nowait(self, port_id: int, data: Buffer) -> int:
        """See `Sender.send_nowait`; if not all was sent, tell the port when there is room again."""
        try:
            sent = self._sender.send_nowait(port_id, data)
        except trio.WouldBlock:
            self.has_room(port_id)
            raise
        if sent < len(data):
            self.has_room(port_id)
        self._tell_room()
        return sent

    def send_later(self, port_id: int, data: Buffer) -> int:
        """See `Sender.deposit`. A port with its own queue (virtio1) does not wait for a turn."""
        if not self.throttles:
            raise trio.WouldBlock
        return self._sender.deposit(port_id, data)

    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """See `Sender.send`; then tell ports that found the queue taken that it is free."""
        try:
            return await super().send(port_id, data, wanted)
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
        if event.id in self._manager.ports:  # v8's config space reports gaps again
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
    """Connect the ports of `manager` to a device while the block runs; then all are detached."""
    async with device as (link, end):
        driver = Driver(manager, link, end)
        driver.start()
        try:
            yield driver
        finally:
            await leave_soon(link)
            driver.take_rest()
            driver.stop()
            with trio.CancelScope(shield=True):  # it does not wait for others
                await driver.detached.wait()

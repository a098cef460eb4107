"""The driver: one connection of the guest end to its device."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final, TypeAlias, assert_never

import trio

from vconfs.guest._emergency import CONSOLE, EmergencyLine
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.link.end import TURN, LinkEnd
from vconfs.link.link import Link, OpenDevice, leave_soon
from vconfs.overrides import override
from vconfs.protocol import events
from vconfs.protocol.dialect import Guest
from vconfs.protocol.events import Buffer, Event
from vconfs.system.tasks import PORTION, in_portions, soon_in_portions

#: A received buffer of at least this many bytes stays in place until it is read, not copied.
_WORTH_HOLDING: Final = 1 << 16
#: How many queues of ports are emptied in one turn of the event loop. Each may hold a MiB.
_OWN_QUEUES: Final = 32
#: What changes a port that is there.
_Change: TypeAlias = (
    events.PortOpened
    | events.PortNamed
    | events.ConsolePort
    | events.CacheSet
    | events.Throttled
    | events.LimitSet
    | events.Resized
)


class Driver(LinkEnd[Port, Guest]):
    """The guest end of one link: connects the ports of a manager to it until the link is lost."""

    peer = "device"
    can_refuse = False
    port_word = "vcon"

    def __init__(self, manager: PortManager, link: Link, end: Guest) -> None:
        super().__init__(link, end, manager.ports, manager.taps.by_port)
        #: Ports that were removed: data that the host sent before may still come.
        self._removed_ids: set[int] = set()
        #: Events from the config space that are not handled yet.
        self._coming: deque[Event] = deque()
        #: Set when all ports have been told that the device is gone.
        self.detached: trio.Event = trio.Event()
        #: Whether the config space has changed meanwhile, and the queues on which data has come.
        self._config_changed = False
        self._kept_back: set[int] = set()
        #: Ports with new data, in order, whose readers are not woken yet.
        self._fed: dict[Port, None] = {}
        self._manager = manager

    def start(self) -> None:
        """Start the device: learn its ports and ask for their names."""
        self._link.start()
        self._let_console_speak()
        self.config_changed()
        self._sender.post(self._end.device_ready())
        soon_in_portions(self.received, range(0, self._end.queues, 2))

    async def take_rest(self) -> None:
        """Receive what the device has already sent, before it is closed."""
        await in_portions(self.received, range(0, self._end.queues, 2), _OWN_QUEUES)

    def _let_console_speak(self) -> None:
        """Accept output of a console that an earlier device had, until its port is added."""
        port = self._ports.get(CONSOLE)
        line = EmergencyLine(self._link, self._end, self._manager.taps.by_port)
        if port is not None and port.console and line.works:
            port.use_emergency_line(line)

    def _detach_ports(self) -> None:
        size = PORTION if self.throttles else _OWN_QUEUES
        soon_in_portions(self._detach, self._ports.values(), size, self.detached.set)

    def _take_rest(self) -> None:
        """Fetch what was sent to all ports, unless each has its own queue: see `_detach`."""
        if self.throttles:
            super()._take_rest()

    def _detach(self, port: Port) -> None:
        port.look_again = lambda: False
        if not port.removed:
            if self._has_queue(port.id):
                self._take_last(port.id)
            port.detach()

    # --- the end of the mount: see draining.py --------------------------------------------

    async def begin_ending(self) -> None:
        """Accept nothing more from either side."""
        await self._manager.begin_ending(hold=True)

    def dropped_by_host(self) -> Mapping[int, int]:
        """Return nothing: bytes that this end drops are counted by its ports."""
        return {}

    # --- called by the link ---------------------------------------------------------------

    def _take(self, queue: int, port: Port | None, most: int = TURN) -> bool:
        """Take several buffers per call from a port's own queue (virtio1), which has only its data.

        The loop ends with the ring, because no buffer goes back to the device before the flush.
        """
        if port is None:
            return super()._take(queue, None, most)
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
            self._handle(event)
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

    @override
    def send_nowait(self, port_id: int, data: Buffer) -> int:
        """If not everything was sent, the port is told when there is room again."""
        try:
            sent = super().send_nowait(port_id, data)
        except trio.WouldBlock:
            self.want_room(port_id)
            raise
        if sent < len(data):
            self.want_room(port_id)
        return sent

    # --- events ---------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        match event:
            case events.Data():
                if port := self._find(event.id, event):
                    self._put(port, event.data)
            case events.PortAdded():
                self._added(event.id)
            case events.PortRemoved():
                self._removed(event.id)
            case events.NameStale():
                self._sender.post(self._end.port_ready(event.id))
            case events.Ignored():
                self._manager.ignore(event.id, event.reason)
            case events.NameAsked() | events.PortReady() | events.DeviceReady():
                raise AssertionError(f"the guest's end of a dialect gave {event}")
            case _:
                if port := self._find(event.id, event):
                    self._changed(port, event)

    def _changed(self, port: Port, event: _Change) -> None:
        match event:
            case events.PortOpened():
                self._opened_by_peer(port, event.opened)
            case events.PortNamed():
                self._manager.rename(port, event.name)
            case events.ConsolePort():
                port.become_console()
            case events.CacheSet():
                port.host_cache = event.cache
            case events.Throttled():
                port.set_throttled(event.throttled)
            case events.LimitSet():
                port.set_limit(event.limit)
            case events.Resized():
                port.resize(event.cols, event.rows)
            case _:
                assert_never(event)

    def _find(self, port_id: int, event: Event) -> Port | None:
        """Return the port that an event is about, or None if there is no such port."""
        port = self._ports.get(port_id)
        if port is None and port_id not in self._removed_ids:
            self._manager.ignore(port_id, f"{type(event).__name__} for unknown port {port_id}")
        return port

    def _put(self, port: Port, data: memoryview) -> None:
        lent = None
        if len(data) >= _WORTH_HOLDING:
            lent = self._link.hold(self._end.receive_queue(port.id))
        port.put(data, lent)
        self._fed[port] = None

    def _taken(self) -> None:
        fed, self._fed = self._fed, {}
        for port in fed:
            port.fed()

    def _added(self, port_id: int) -> None:
        self._removed_ids.discard(port_id)
        port = self._manager.add(port_id)
        ready = partial(self._sender.post, self._end.port_ready(port_id))
        port.look_again = partial(self._link.look_again, self._end.receive_queue(port_id))
        if port.attached:
            ready()
        else:
            port.attach(self, ready)

    def _removed(self, port_id: int) -> None:
        if port_id in self._ports:  # v8's config space reports gaps again
            self._take_last(port_id)
            self._ports[port_id].counters.dropped += self._sender.forget(port_id)
            self._manager.remove(port_id)
            self._removed_ids.add(port_id)

    def _set_connected(self, port: Port, connected: bool) -> None:
        port.set_connected(connected)


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
            with trio.CancelScope(shield=True):  # this does not wait for others
                await driver.take_rest()
                driver.stop()
                await driver.detached.wait()

"""A mount of the host's side of ports, for the tests of what a file does: both ends are swapped.

The files are the host's side, and the far side is a guest's. There each port is served by the
chardev that the test asks for, which otherwise serves the host's side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import trio
from attrs import define, evolve, field

from tests.support.waiting import until
from vconfs.guest.opener import Opener
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Counters, Port
from vconfs.guest.ports import PortManager
from vconfs.host.chardev import Chardev, PortSide, ServeAsFile
from vconfs.host.chardevs.builtin import Null, Zero
from vconfs.host.chardevs.mounts import Mount
from vconfs.host.host import Host, open_host
from vconfs.host.port import DEFAULT_HOST_LIMIT, HostPortSpec
from vconfs.mounting import HostMount, Plan
from vconfs.overrides import override
from vconfs.protocol.events import Buffer
from vconfs.system.tasks import open_background

GUEST = "web1"
_PIECE = 1 << 16

#: Joins a host end to ports of a guest.
Join = Callable[[Host, PortManager], AbstractAsyncContextManager[object]]


@define(eq=False)
class GuestPeer(PortSide):
    """A port of a guest as its chardev sees it."""

    port: Port
    console: bool = False
    sink: Callable[[memoryview], int] | None = None
    source: Callable[[int], Buffer] | None = None
    hang_up_client: Callable[[], None] | None = None
    reopen: Callable[[], None] | None = None
    unread: Callable[[], int] | None = None
    as_file: ServeAsFile | None = None
    patience: float = 5.0
    keeps_sessions: bool = False
    _opener: Opener | None = None
    _rest: bytes = b""
    _changed: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    #: How often the file was opened; how many of these the chardev was told of; how many closes.
    _sessions: int = 0
    _told: int = 0
    _closes: int = 0
    _was_open: bool = False

    @property
    def id(self) -> int:  # type: ignore[override]
        return self.port.id

    @property
    def name(self) -> bytes:  # type: ignore[override]
        return self.port.name

    @property
    @override
    def counters(self) -> Counters:
        return self.port.counters

    @property
    @override
    def guest_connected(self) -> bool:
        """True if the file is open."""
        return self.port.host_connected

    @property
    def queued(self) -> int:
        """How many bytes of the file's writers have not been taken yet."""
        return self.port.queued

    @override
    def connect(self) -> None:
        if self._opener is None:
            self._opener = Opener(1)
            self.port.open(self._opener)
            self._changed.unpark_all()

    @override
    def disconnect(self) -> None:
        if self._opener is not None:
            opener, self._opener = self._opener, None
            self.port.close(opener)

    async def serve(
        self, chardev: Chardev, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the chardev, and do for it what it expects of a port of the host end."""
        async with open_background() as nursery:
            await nursery.start(chardev.run, self)
            if isinstance(chardev, Null | Zero):  # they take and send by calls only
                nursery.start_soon(self._pass_on)
            if self.source is not None:
                nursery.start_soon(self._supply, self.source)
            task_status.started()
            await trio.sleep_forever()

    def changed(self) -> None:
        """Count the opens of the file, and wake what waits for a change."""
        is_open = self.port.host_connected
        self._sessions += is_open and not self._was_open
        self._was_open = is_open
        self._changed.unpark_all()

    async def _pass_on(self) -> None:
        while True:
            data = await self.receive()
            assert self.sink is not None
            self.sink(memoryview(data))

    async def _supply(self, source: Callable[[int], Buffer]) -> None:
        while True:
            await self.send(source(_PIECE))

    @override
    async def receive(self, size: int = _PIECE) -> bytes:
        while True:
            if self._rest:
                data, self._rest = self._rest[:size], self._rest[size:]
                return data
            if self.port.removed:
                await trio.sleep_forever()
            elif self._opener is None:
                await self._changed.park()
            elif data := await self._read(size):
                return data
            elif self.keeps_sessions and self._closes < self._sessions:
                self._closes += 1
                return b""
            elif not self.port.host_connected and not self.port.queued:
                await self._changed.park()

    async def _read(self, size: int) -> bytes:
        try:
            return b"".join(await self.port.read(size))
        except OSError:  # ENODEV: the host end has removed the port
            return await trio.sleep_forever()

    @override
    def resize(self, cols: int, rows: int) -> None:
        """Do nothing: the size of a console goes to guests only."""

    @override
    def hang_up(self) -> None:
        self.disconnect()
        self.connect()

    @override
    async def next_session(self) -> None:
        while self._told == self._sessions:
            await self._changed.park()
        self._told += 1

    @override
    async def wait_for_data(self) -> None:
        if not self._rest:
            self._rest = await self.receive()

    @override
    def peek(self, size: int) -> Sequence[Buffer]:
        return [self._rest[:size]]

    @override
    def took(self, size: int) -> None:
        self._rest = self._rest[size:]

    @override
    async def receive_message(self) -> bytes:
        raise AssertionError("only a guest's writes keep their boundaries")

    @override
    def send_nowait(self, data: Buffer) -> int:
        return 0

    @override
    def delivered(self, size: int) -> None: ...

    @override
    def lost(self, size: int) -> None: ...

    @override
    def put_back(self, data: Buffer) -> None:
        self._rest = bytes(data) + self._rest

    @contextmanager
    @override
    def listening(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as scope:
            yield scope

    @override
    async def send(self, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[await self.port.write(rest) :]


@define(eq=False)
class FarSide:
    """What tests ask of the far side of the ports, done by the guest that is it here."""

    host: Host
    _guest: PortManager
    _nursery: trio.Nursery
    ports: dict[int, GuestPeer] = field(factory=dict)

    async def add(self, spec: HostPortSpec) -> GuestPeer:
        added = await self.host.add(evolve(spec, chardev=Mount(), host_limit=DEFAULT_HOST_LIMIT))
        return await self.serve(added.id, spec)

    async def serve(self, port_id: int, spec: HostPortSpec) -> GuestPeer:
        """Serve a port of the guest by its chardev, when the guest has the port."""
        assert not spec.chardev.keeps_boundaries, "only a guest's writes keep their boundaries"
        ports = self._guest.ports
        await until(lambda: port_id in ports and ports[port_id].name == spec.name)
        port = ports[port_id]
        port.set_options(PortOptions(limit=spec.host_limit, cache=spec.cache))
        peer = self.ports[port_id] = GuestPeer(port, keeps_sessions=spec.chardev.keeps_sessions)
        await self._nursery.start(peer.serve, spec.chardev)
        return peer

    def throttle(self, port_id: int, on: bool) -> None:
        inbox = self.ports[port_id].port._inbox
        assert inbox._at.line is not None
        inbox._throttle.ask(inbox._at.line, port_id, on)

    def remove(self, port_id: int) -> None:
        self.host.remove(port_id)

    def rename(self, port_id: int, name: bytes) -> None:
        self.host.rename(port_id, name)

    # --- called by the ports of the guest -------------------------------------------------

    def port_changed(self, port: Port) -> None:
        if peer := self.ports.get(port.id):
            peer.changed()

    def port_added(self, port: Port) -> None: ...
    def port_removed(self, port: Port) -> None: ...
    def port_renamed(self, port: Port, old: bytes) -> None: ...


@asynccontextmanager
async def open_mirrored(
    plan: Plan, specs: Sequence[HostPortSpec], join: Join
) -> AsyncIterator[tuple[FarSide, PortManager]]:
    """Mount the host's side of these ports; yield what stands for the far side, and the ports."""
    guest = PortManager()
    mount = HostMount(evolve(plan, port_options=evolve(plan.port_options, limit=None)))
    limit = plan.port_options.limit or DEFAULT_HOST_LIMIT
    with mount.of_guest(GUEST) as shown:
        ours = [evolve(spec, chardev=Mount(), host_limit=limit) for spec in specs]
        async with open_host(ours, name=GUEST, files=shown) as host, mount.opened():
            async with join(host, guest), open_background() as nursery:
                far = FarSide(host, guest, nursery)
                with guest.observing(far):
                    for port_id, spec in zip(tuple(host.ports), specs, strict=True):
                        await far.serve(port_id, spec)
                    connected = [port_id for port_id, peer in far.ports.items() if peer._opener]
                    ports = shown.manager.ports
                    await until(lambda: all(ports[port_id].host_connected for port_id in connected))
                    yield far, shown.manager

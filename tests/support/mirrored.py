"""A mount of the host's side of ports, for the tests of what a file does: both ends are swapped.

The files are the host's side, and the far side is a guest's. There each port is served by the
chardev that the test asks for, which otherwise serves the host's side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import cast

import trio
from attrs import define, evolve, field

from tests.support.waiting import until
from vconfs.guest.devices import join_embedded
from vconfs.guest.opener import Opener
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Counters, Port
from vconfs.guest.ports import PortManager
from vconfs.host.chardev import PortSide, ServeAsFile
from vconfs.host.chardevs.mounts import Mount
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPortSpec
from vconfs.mounting import HostMount, Plan
from vconfs.overrides import override
from vconfs.protocol.events import Buffer
from vconfs.system.tasks import open_background

GUEST = "web1"


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
    _opener: Opener | None = None
    _rest: bytes = b""
    _opened: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

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

    @override
    def connect(self) -> None:
        if self._opener is None:
            self._opener = Opener(1)
            self.port.open(self._opener)
            self._opened.unpark_all()

    @override
    def disconnect(self) -> None:
        if self._opener is not None:
            opener, self._opener = self._opener, None
            self.port.close(opener)

    @override
    async def receive(self, size: int = 1 << 16) -> bytes:
        while True:
            if self._rest:
                data, self._rest = self._rest[:size], self._rest[size:]
                return data
            if self.port.removed:
                await trio.sleep_forever()
            elif self._opener is None:
                await self._opened.park()
            elif data := await self._read(size):
                return data
            else:
                await until(lambda: self.port.host_connected or self.port.queued)

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
        raise NotImplementedError

    @override
    async def next_session(self) -> None:
        raise NotImplementedError

    @override
    async def receive_message(self) -> bytes:
        raise NotImplementedError

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


@define
class FarHost:
    """What tests ask of a `Host`, done by the guest that is the far side here."""

    host: Host
    ports: dict[int, GuestPeer] = field(factory=dict)

    def throttle(self, port_id: int, on: bool) -> None:
        inbox = self.ports[port_id].port._inbox
        assert inbox._at.line is not None
        inbox._throttle.ask(inbox._at.line, port_id, on)

    def remove(self, port_id: int) -> None:
        self.host.remove(port_id)


@asynccontextmanager
async def open_mirrored(
    plan: Plan, specs: Sequence[HostPortSpec]
) -> AsyncIterator[tuple[Host, PortManager]]:
    """Mount the host's side of these ports; yield what stands for the far side, and the ports."""
    limits = {port_id: spec.host_limit for port_id, spec in enumerate(specs)}
    guest = PortManager(lambda port_id: PortOptions(limit=limits[port_id], cache=True))
    mount = HostMount(evolve(plan, port_options=evolve(plan.port_options, limit=None)))
    limit = plan.port_options.limit or 1 << 20
    with mount.of_guest(GUEST) as shown:
        ours = [evolve(spec, chardev=Mount(), host_limit=limit) for spec in specs]
        async with open_host(ours, files=shown) as host, mount.opened():
            async with join_embedded(host, guest), open_background() as nursery:
                await until(lambda: len(guest.ports) == len(specs))
                await until(lambda: all(port.name for port in guest.ports.values()))
                far = FarHost(host)
                for port_id, spec in enumerate(specs):
                    assert not spec.chardev.keeps_boundaries, "only the guest's writes have them"
                    peer = far.ports[port_id] = GuestPeer(guest.ports[port_id])
                    await nursery.start(spec.chardev.run, peer)
                if any(peer._opener for peer in far.ports.values()):
                    await until(
                        lambda: any(it.host_connected for it in shown.manager.ports.values())
                    )
                yield cast("Host", far), shown.manager

"""The ports of the kernel's own driver: /dev/vport0p1 … joined to the ports of a mount.

Where virtio_console has the device and keeps it, scripts then find the same files, names and
attributes as with a driver of ours, and several programs can have one port open. The kernel's port
is open, for this process alone, as long as any program has ours open; nothing else is known of it
before. Back-pressure is as in the standard's dialect: what is not read stays in the kernel.

The kernel's port is opened at the first open of ours, not at the first use of it as elsewhere,
because the kernel may refuse it: EBUSY while another process has it open, ENXIO for a console's
port, which is /dev/hvcN. So the host sees every open and close here, also of a program that does
nothing with the port. What such a program leaves unread is kept, as far as it has come to us (up
to the port's limit); the kernel drops the rest when its port is closed.

What the kernel does not tell: whether the host is there while its port is not open, and where in
the bytes a hang-up was that a new connection followed at once.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio
from attrs import define, field

from vconfs.errors import VconfsError
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.protocol.events import Buffer
from vconfs.system.tasks import open_background

log = logging.getLogger(__name__)

_PORTS: Final = "class/virtio-ports"
#: vport DEVICE p PORT
_NAME: Final = re.compile(r"vport(\d+)p(\d+)")
#: Ports of the second device and on have ids that start at multiples of this.
_IDS_PER_DEVICE: Final = 1 << 10

_NETLINK_KOBJECT_UEVENT: Final = 15
_KERNEL_GROUP: Final = 1
_UEVENT_MAX: Final = 8192
_READ_SIZE: Final = 1 << 16


def port_id(name: str) -> int | None:
    """Give the id of the port that the kernel calls, say, vport0p1; None: it has no such name."""
    found = _NAME.fullmatch(name)
    if found is None or int(found[2]) >= _IDS_PER_DEVICE:
        return None
    return int(found[1]) * _IDS_PER_DEVICE + int(found[2])


@define(eq=False)
class _Channel:
    """A port of the kernel's while it is open."""

    port: Port
    descriptor: int
    #: Readable whenever anything has become of the port: an epoll that waits for edges.
    changes: select.epoll
    room: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    #: Somebody polled and there was no room: room is then a change of the port's state.
    polled: bool = False

    @classmethod
    def open(cls, port: Port, path: Path) -> _Channel:
        with ExitStack() as opened:
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            changes = opened.enter_context(select.epoll())
            changes.register(descriptor, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            opened.pop_all()
        return cls(port, descriptor, changes)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self.changes.fileno())
        self.changes.close()
        os.close(self.descriptor)
        self.room.unpark_all()

    async def watch(self) -> None:
        """Act on what becomes of the port until it is closed."""
        with suppress(trio.ClosedResourceError):
            while not self.changes.closed:
                await trio.lowlevel.wait_readable(self.changes.fileno())
                self._changed()

    def fetch(self) -> None:
        """Take what the host sent, as far as the port wants it, and see whether it is there."""
        port = self.port
        while port.wants_data:
            try:
                data = os.read(self.descriptor, _READ_SIZE)
            except BlockingIOError:
                port.set_connected(True)
                return
            except OSError:
                return  # the port is going: `KernelPorts.look` will find it gone
            if not data:
                port.set_connected(False)
                return
            port.set_connected(True)
            port.feed(memoryview(data))

    def has_room(self) -> bool:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        room = any(mask & select.POLLOUT for _, mask in poll.poll(0))
        self.polled = self.polled or not room
        return room

    def write(self, data: Buffer) -> int:
        """Write as much as goes; trio.WouldBlock: nothing does."""
        view, sent = memoryview(data), 0
        try:
            while sent < len(view):
                sent += os.write(self.descriptor, view[sent:])
        except BlockingIOError:
            if not sent:
                raise trio.WouldBlock from None
        return sent

    def _changed(self) -> None:
        if self.changes.closed:  # after the waiting was over, and before we had our turn
            return
        events = self.changes.poll(0)
        self.fetch()
        if any(mask & select.EPOLLOUT for _, mask in events):
            self.room.unpark_all()
            if self.polled:
                self.polled = False
                self.port.room_came()


class KernelPorts:
    """All ports of the kernel's driver; the line of the manager's ports to them."""

    throttles = False
    can_refuse = True
    in_flight = 0
    tells_all_ports = True

    def __init__(
        self, manager: PortManager, nursery: trio.Nursery, sysfs: Path, devices: Path
    ) -> None:
        self.stopped = trio.Event()
        self.reason = ""
        self._manager = manager
        self._nursery = nursery
        self._folder = sysfs / _PORTS
        self._devices = devices
        self._paths: dict[int, Path] = {}
        self._channels: dict[int, _Channel] = {}

    def look(self) -> None:
        """Find out which ports there are now, and their names."""
        listed = [(port_id(path.name), path) for path in self._folder.iterdir()]
        found = {id: path for id, path in listed if id is not None}
        for id in self._paths.keys() - found.keys():
            del self._paths[id]
            self._manager.remove(id)
            self._close(id)
        for id, path in sorted(found.items()):
            port = self._manager.add(id)
            self._paths[id] = self._devices / path.name
            if not port.attached:
                self._attach(port)
            with suppress(OSError):
                self._manager.rename(port, (path / "name").read_bytes().rstrip(b"\n"))

    def begin_ending(self) -> None:
        """Accept nothing more from either side."""
        self._manager.begin_ending(hold=True)

    def owed(self) -> Mapping[int, int]:
        """Nothing: what the kernel has taken it keeps for the host."""
        return {}

    def dropped_by_host(self) -> Mapping[int, int]:
        """Nothing."""
        return {}

    def stop(self) -> None:
        """Leave the kernel's ports alone; ours stay, hung up."""
        self.stopped.set()
        for id in list(self._channels):
            self._close(id)
        for id in self._paths:
            self._manager.ports[id].detach()

    # --- what the ports ask for: see `port.PortLine` ------------------------------------------

    def open_port(self, id: int, opened: bool) -> None:
        """Open the kernel's port, or close it. OSError: it does not let us, EBUSY or ENXIO."""
        if not opened:
            self._close(id)
            self._manager.ports[id].set_connected(False)  # as far as anybody knows
        elif id not in self._channels:
            channel = _Channel.open(self._manager.ports[id], self._paths[id])
            self._channels[id] = channel
            channel.fetch()
            self._nursery.start_soon(channel.watch)

    def has_room(self, id: int) -> bool:
        """Whether a write of this port would take something."""
        channel = self._channels.get(id)
        return channel is not None and channel.has_room()

    def send_nowait(self, id: int, data: Buffer) -> int:
        """Write to the kernel's port. OSError; trio.WouldBlock."""
        if id not in self._channels:
            raise trio.WouldBlock
        return self._channels[id].write(data)

    def send_later(self, id: int, data: Buffer) -> int:
        """Refuse: ports do not share a queue here. trio.WouldBlock."""
        raise trio.WouldBlock

    async def send(self, id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """Like `send_nowait`, but wait for room; 0: it is not wanted any more."""
        while (channel := self._channels.get(id)) is not None and wanted():
            try:
                return channel.write(data)
            except trio.WouldBlock:
                await channel.room.park()
        return 0

    def nudge(self, id: int) -> None:
        """Let whoever waits to send look whether that is still wanted."""
        if id in self._channels:
            self._channels[id].room.unpark_all()

    def throttle(self, id: int, on: bool, seen: Callable[[], None]) -> None:
        """Never called: the kernel holds back what is not read."""

    def refill(self, port: Port) -> None:
        """The port has space again."""
        if port.id in self._channels:
            self._channels[port.id].fetch()

    # --- helpers --------------------------------------------------------------------------

    def _attach(self, port: Port) -> None:
        try:
            port.attach(self)
        except OSError as error:
            log.warning("%s: %s", self._paths[port.id], error.strerror)

    def _close(self, id: int) -> None:
        channel = self._channels.pop(id, None)
        if channel is not None:
            channel.close()


@asynccontextmanager
async def open_kernel(
    manager: PortManager, sysfs: Path = Path("/sys"), devices: Path = Path("/dev")
) -> AsyncIterator[KernelPorts]:
    """Join the ports of `manager` to the kernel's, for as long as the block runs.

    VconfsError: the kernel has no driver for such ports.
    """
    if not (sysfs / _PORTS).is_dir():
        raise VconfsError(f"there is no {sysfs / _PORTS}: is the module virtio_console loaded?")
    with _uevents() as uevents:
        async with open_background() as nursery:
            ports = KernelPorts(manager, nursery, sysfs, devices)
            ports.look()
            nursery.start_soon(_look_at_changes, ports, uevents)
            try:
                yield ports
            finally:
                ports.stop()


def _uevents() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT)
    sock.setblocking(False)
    try:
        sock.bind((0, _KERNEL_GROUP))
    except OSError as error:
        sock.close()
        raise VconfsError(f"cannot hear of the kernel's devices: {error.strerror}") from None
    return sock


async def _look_at_changes(ports: KernelPorts, uevents: socket.socket) -> None:
    """Look again whenever the kernel says that something became of a port."""
    while True:
        await trio.lowlevel.wait_readable(uevents)
        try:
            concerns_us = b"/virtio-ports/" in uevents.recv(_UEVENT_MAX)
        except OSError:
            concerns_us = True  # some were lost
        if concerns_us:
            ports.look()

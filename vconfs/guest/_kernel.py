"""The ports of the kernel's driver: /dev/vport0p1 … connected to the ports of a mount.

If virtio_console has the device and keeps it, scripts find the same files, names and attributes as
with our own driver, and several programs can have one port open. The kernel's port is open, by this
process alone, while any program has ours open; before that, only its name is known. Back-pressure
is as in the standard's dialect: what is not read stays in the kernel.

The kernel's port is opened at the first open of ours, not at its first use as with other devices,
because the kernel may refuse: EBUSY while another process has it open, ENXIO for a console's port,
which is /dev/hvcN. So the host sees every open and close here, even of a program that does nothing
with the port. Data that such a program leaves unread is kept if we have already read it from the
kernel (up to the port's limit); the kernel drops the rest when its port is closed.

The kernel does not report whether the host is connected while its port is not open, nor where in
the bytes a hang-up was if a new connection followed at once.
"""

from __future__ import annotations

import errno
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
from vconfs.system.descriptors import has_room
from vconfs.system.edges import watching_edges
from vconfs.system.tasks import open_background

log: Final = logging.getLogger(__name__)

_PORTS: Final = "class/virtio-ports"
#: vport DEVICE p PORT
_NAME: Final = re.compile(r"vport(\d+)p(\d+)")
#: The ids of each further device's ports start at the next multiple of this.
_IDS_PER_DEVICE: Final = 1 << 10

_NETLINK_KOBJECT_UEVENT: Final = 15
_KERNEL_GROUP: Final = 1
_UEVENT_MAX: Final = 8192
_READ_SIZE: Final = 1 << 16
_BOTH_WAYS: Final = select.EPOLLIN | select.EPOLLOUT


def id_of_device(name: str) -> int | None:
    """Return the id of the port that the kernel calls `name` (say vport0p1), or None."""
    found = _NAME.fullmatch(name)
    if found is None or int(found[2]) >= _IDS_PER_DEVICE:
        return None
    return int(found[1]) * _IDS_PER_DEVICE + int(found[2])


@define(eq=False)
class _Channel:
    """An open port of the kernel."""

    port: Port
    descriptor: int
    room: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    #: True if a poll found no room: pollers must then be told when there is some.
    polled: bool = False
    #: What closes the port.
    stack: ExitStack = field(factory=ExitStack)

    @classmethod
    def open(cls, port: Port, path: Path) -> _Channel:
        with ExitStack() as opened:
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            channel = cls(port, descriptor)
            opened.enter_context(watching_edges(descriptor, _BOTH_WAYS, channel.changed))
            channel.stack = opened.pop_all()
        return channel

    def close(self) -> None:
        self.stack.close()
        self.room.unpark_all()

    def fetch(self) -> None:
        """Read as much data as the port wants, and note whether the host is connected."""
        port = self.port
        while port.wants_data:
            try:
                data = os.read(self.descriptor, _READ_SIZE)
            except BlockingIOError:
                port.set_connected(True)
                return
            except OSError:
                return  # the port is being removed, which `KernelPorts.look` will find
            if not data:
                port.set_connected(False)
                return
            port.set_connected(True)
            port.feed(memoryview(data))

    @property
    def has_room(self) -> bool:
        return has_room(self.descriptor)

    def write(self, data: Buffer) -> int:
        """Write as much as fits; raise trio.WouldBlock if nothing does."""
        view, sent = memoryview(data), 0
        try:
            while sent < len(view):
                sent += os.write(self.descriptor, view[sent:])
        except BlockingIOError:
            if not sent:
                raise trio.WouldBlock from None
        if self.port.tap is not None:
            self.port.tap.sent(view[:sent])
        return sent

    def changed(self, events: int) -> None:
        """React to a change of the port."""
        self.fetch()
        if events & select.EPOLLOUT:
            self.room.unpark_all()
            if self.polled and self.has_room:  # writes may have taken the room since the event
                self.polled = False
                self.port.room_came()


class KernelPorts:
    """All ports of the kernel's driver; the `PortLine` of the manager's ports."""

    throttles = False
    can_refuse = True
    in_flight = 0
    tells_all_ports = True

    def __init__(self, manager: PortManager, sysfs: Path, devices: Path) -> None:
        self.stopped = trio.Event()
        self.reason = ""
        self._manager = manager
        self._folder = sysfs / _PORTS
        self._devices = devices
        self._paths: dict[int, Path] = {}
        self._channels: dict[int, _Channel] = {}

    def look(self) -> None:
        """Update the ports and their names from sysfs."""
        listed = [(id_of_device(path.name), path) for path in self._folder.iterdir()]
        found = {port_id: path for port_id, path in listed if port_id is not None}
        for port_id in self._paths.keys() - found.keys():
            del self._paths[port_id]
            self._manager.remove(port_id)
            self._close(port_id)
        for port_id, path in sorted(found.items()):
            port = self._manager.add(port_id)
            self._paths[port_id] = self._devices / path.name
            if not port.attached:
                self._attach(port)
            with suppress(OSError):
                self._manager.rename(port, (path / "name").read_bytes().rstrip(b"\n"))

    async def begin_ending(self) -> None:
        """Accept nothing more from either side."""
        await self._manager.begin_ending(hold=True)

    def owed(self) -> Mapping[int, int]:
        """Return nothing: the kernel keeps for the host what it has taken."""
        return {}

    async def leave(self, patience: float) -> None:
        """Do nothing: the kernel has everything that it took."""

    def dropped_by_host(self) -> Mapping[int, int]:
        """Return nothing."""
        return {}

    def stop(self) -> None:
        """Close the kernel's ports; ours stay, hung up."""
        self.stopped.set()
        for port_id in list(self._channels):
            self._close(port_id)
        for port_id in self._paths:
            self._manager.ports[port_id].detach()

    # --- called by the ports: see `PortLine` ----------------------------------------------

    def open_port(self, port_id: int, opened: bool) -> None:
        """Open or close the kernel's port; raise OSError (EBUSY, ENXIO) if the kernel refuses."""
        if not opened:
            self._close(port_id)
            self._manager.ports[port_id].set_connected(False)  # the kernel no longer reports it
        elif port_id not in self._channels:
            channel = _Channel.open(self._manager.ports[port_id], self._paths[port_id])
            self._channels[port_id] = channel
            channel.fetch()

    def has_room(self, port_id: int) -> bool:
        """True if a write of this port would take something."""
        channel = self._channels.get(port_id)
        return channel is not None and channel.has_room

    def want_room(self, port_id: int) -> None:
        """If a write of this port would take nothing, notify its pollers when one would."""
        channel = self._channels.get(port_id)
        if channel is not None and not channel.has_room:
            channel.polled = True

    def send_nowait(self, port_id: int, data: Buffer) -> int:
        """Write to the kernel's port; return how many bytes. Raise OSError or trio.WouldBlock."""
        if port_id not in self._channels:
            raise trio.WouldBlock
        return self._channels[port_id].write(data)

    def send_later(self, port_id: int, data: Buffer) -> int:
        """Raise trio.WouldBlock: ports do not share a queue here."""
        raise trio.WouldBlock

    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """Like `send_nowait`, but wait for room; return 0 if it is no longer wanted."""
        while (channel := self._channels.get(port_id)) is not None and wanted():
            try:
                return channel.write(data)
            except trio.WouldBlock:
                await channel.room.park()
        return 0

    def nudge(self, port_id: int) -> None:
        """Let a waiting `send` check whether it is still wanted."""
        if port_id in self._channels:
            self._channels[port_id].room.unpark_all()

    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None:
        """Do nothing; never called, because the kernel keeps what is not read."""

    def refill(self, port_id: int) -> None:
        """Read more from the kernel: the port has space again."""
        if port_id in self._channels:
            self._channels[port_id].fetch()

    # --- helpers --------------------------------------------------------------------------

    def _attach(self, port: Port) -> None:
        try:
            port.attach(self)
        except OSError as error:
            log.warning("%s: %s", self._paths[port.id], error.strerror)

    def _close(self, port_id: int) -> None:
        channel = self._channels.pop(port_id, None)
        if channel is not None:
            channel.close()


@asynccontextmanager
async def open_kernel(
    manager: PortManager, sysfs: Path = Path("/sys"), devices: Path = Path("/dev")
) -> AsyncIterator[KernelPorts]:
    """Connect the ports of `manager` to the kernel's while the block runs.

    Raise VconfsError if the kernel's driver is not loaded.
    """
    if not (sysfs / _PORTS).is_dir():
        raise VconfsError(f"there is no {sysfs / _PORTS}: is the module virtio_console loaded?")
    with _uevents() as uevents:
        async with open_background() as nursery:
            ports = KernelPorts(manager, sysfs, devices)
            ports.look()
            nursery.start_soon(_look_at_changes, ports, uevents)
            try:
                yield ports
            finally:
                ports.stop()


def _uevents() -> socket.socket:
    try:
        with ExitStack() as stack:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_KOBJECT_UEVENT)
            stack.callback(sock.close)
            sock.setblocking(False)
            sock.bind((0, _KERNEL_GROUP))
            stack.pop_all()
            return sock
    except OSError as error:
        advice = "; a unit of systemd needs RestrictAddressFamilies=AF_NETLINK"
        raise VconfsError(
            f"cannot listen for the kernel's device events: {error.strerror}"
            + (advice if error.errno == errno.EAFNOSUPPORT else "")
        ) from None


async def _look_at_changes(ports: KernelPorts, uevents: socket.socket) -> None:
    """Update the ports whenever the kernel reports a change of one."""
    while True:
        await trio.lowlevel.wait_readable(uevents)
        try:
            concerns_us = b"/virtio-ports/" in uevents.recv(_UEVENT_MAX)
        except OSError:
            concerns_us = True  # some were lost
        if concerns_us:
            ports.look()

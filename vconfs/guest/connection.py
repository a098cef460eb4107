"""Keeping the ports joined to a device that may go away and come back.

When the device is lost the ports hang up and stay, and it is tried again with growing pauses. Ports
with the same id come back to life; those that the device does not have any more go once it has had
time to announce them.
"""

from __future__ import annotations

from typing import Final

import trio

from vconfs.errors import VconfsError
from vconfs.guest.devices import Device, Joint
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.system.backoff import Backoff

#: A device has announced its ports when it was quiet for so many seconds, or has had its time.
_QUIET: Final = 0.1
_ANNOUNCING_MAX: Final = 2.0


class Connection:
    """Joins the ports of `manager` to `device`, again and again or, with `once`, once."""

    def __init__(self, device: Device, manager: PortManager, *, once: bool = False) -> None:
        #: Set when the device is lost and not tried again.
        self.lost = trio.Event()
        #: Why the device was lost, or could not be had, the last time.
        self.reason = ""
        #: What joins the ports to the device now.
        self.joint: Joint | None = None
        self._device = device
        self._manager = manager
        self._once = once
        self._tries = Backoff(device.url, f"{device.url}: connected again")

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, say that we have started when the ports are there, and stay connected.

        Raises what opening the device raises, when the very first try fails.
        """
        had = False
        while True:
            try:
                reason = await self._connect(task_status if not had else trio.TASK_STATUS_IGNORED)
                had = True
            except VconfsError as error:
                if not had:
                    raise
                reason = str(error)
            self.reason = reason
            if self._once:
                self.lost.set()
                return
            await self._tries.failed(reason)

    async def _connect(self, task_status: trio.TaskStatus[None]) -> str:
        """Serve one connection; tell why it was lost."""
        try:
            async with self._device.open(self._manager) as joint:
                await _announced(joint, self._manager)
                if joint.stopped.is_set():
                    raise VconfsError(joint.reason)
                self._manager.remove_detached()
                self.reason = ""
                self._tries.succeeded()
                self.joint = joint
                task_status.started()
                await joint.stopped.wait()
                self.joint = None
                return joint.reason
        except OSError as error:  # no descriptor is left, say
            raise VconfsError(f"cannot open {self._device.url}: {error.strerror}") from error


class _Changes:
    """Notices whether anything has become of the ports."""

    def __init__(self) -> None:
        self.seen = True

    def port_added(self, port: Port) -> None:
        self.seen = True

    def port_removed(self, port: Port) -> None:
        self.seen = True

    def port_renamed(self, port: Port, old: bytes) -> None:
        self.seen = True

    def port_changed(self, port: Port) -> None: ...


async def _announced(joint: Joint, manager: PortManager) -> None:
    """Wait until the device has announced its ports: no message says which is the last.

    A slow one has all its time while there is no port yet, or not each that was there before.
    """
    changes = _Changes()
    with manager.observing(changes), trio.move_on_after(_ANNOUNCING_MAX):
        while not joint.stopped.is_set() and not _all_told(joint, manager):
            if not changes.seen and not _some_are_missing(joint, manager):
                return
            changes.seen = False
            await trio.sleep(_QUIET)


def _some_are_missing(joint: Joint, manager: PortManager) -> bool:
    ports = manager.ports.values()
    return not joint.tells_all_ports and not (ports and all(port.attached for port in ports))


def _all_told(joint: Joint, manager: PortManager) -> bool:
    """Whether the device told all ports at once, and by now their names too."""
    attached = [port for port in manager.ports.values() if port.attached]
    return joint.tells_all_ports and all(port.name or port.console for port in attached)

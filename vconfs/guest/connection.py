"""Keeping the ports connected to a device that may go away and come back.

When the device is lost, the ports hang up and stay, and the device is opened again with growing
pauses. Ports with the same id then continue. Ports that the device no longer has are removed once
it has had time to announce them.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Final

import trio

from vconfs.errors import VconfsError
from vconfs.guest.devices import Device, Joint
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.system.backoff import Backoff

#: A device has announced its ports when it has been quiet for `_QUIET` seconds, and at the latest
#: after `_ANNOUNCING_MAX`.
_QUIET: Final = 0.1
_ANNOUNCING_MAX: Final = 2.0


class Connection:
    """The connection of the ports of `manager` to `device`; with `once`, it is not renewed.

    The first connection is tried again for `patience` seconds, if the device is not there yet.
    """

    def __init__(
        self,
        device: Device,
        manager: PortManager,
        *,
        once: bool = False,
        patience: float = 0.0,
    ) -> None:
        #: Set when the device is lost and will not be opened again.
        self.lost: trio.Event = trio.Event()
        #: Why the device was lost, or could not be opened, the last time.
        self.reason: str = ""
        #: What connects the ports to the device now; None if they are not connected.
        self.joint: Joint | None = None
        self._device = device
        self._manager = manager
        self._once = once
        self._patience = patience
        self._tries = Backoff(device.url, f"{device.url}: connected again")

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, report that we have started once the ports are there, and stay connected.

        If no first connection is made in time, raise what opening the device raised.
        """
        had = False
        deadline = trio.current_time() + self._patience
        while True:
            try:
                reason = await self._connect(task_status if not had else trio.TASK_STATUS_IGNORED)
                had = True
            except VconfsError as error:
                if not had and trio.current_time() >= deadline:
                    raise
                reason = str(error)
            self.reason = reason
            if had and self._once:
                self.lost.set()
                return
            with nullcontext() if had else trio.move_on_at(deadline):
                await self._tries.failed(reason)

    async def _connect(self, task_status: trio.TaskStatus[None]) -> str:
        """Serve one connection; return why it was lost."""
        try:
            async with self._device.open(self._manager) as joint:
                await _announced(joint, self._manager)
                if joint.stopped.is_set():
                    raise VconfsError(joint.reason)
                await self._manager.remove_detached()
                self.reason = ""
                self._tries.succeeded()
                self.joint = joint
                task_status.started()
                await joint.stopped.wait()
                self.joint = None
                return joint.reason
        except OSError as error:  # for example, no descriptor is left
            raise VconfsError(f"cannot open {self._device.url}: {error.strerror}") from error


class _Changes:
    """An observer that notes whether ports were added, removed or renamed."""

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

    The full time is only used if there is no port yet, or if ports from before are missing.
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
    """True if the device told all ports at once, and by now their names too."""
    attached = [port for port in manager.ports.values() if port.attached]
    return joint.tells_all_ports and all(port.name or port.console for port in attached)

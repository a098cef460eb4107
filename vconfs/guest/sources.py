"""Where the ports of a mount come from, as a mount that ends has to know it."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Final, Protocol

import trio

from vconfs.guest.connection import Connection
from vconfs.guest.devices import Device, Joint
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.link.draining import say_what_was_lost
from vconfs.overrides import override
from vconfs.system.tasks import in_portions

log: Final = logging.getLogger(__name__)


class Source(Protocol):
    """What has the ports of a mount: a device, or the sockets of hypervisors."""

    @property
    def url(self) -> str:
        """The url that the user gave."""

    @property
    def lost(self) -> trio.Event:
        """Set when no ports will come any more."""

    @property
    def reason(self) -> str:
        """Why no ports will come any more."""

    def reopen_files(self) -> None:
        """Reopen the files that its ports write to, if the host end is in this process."""

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Report that we have started once the ports are there, and follow their changes."""

    async def begin_ending(self) -> None:
        """Accept nothing more from either side: see draining.py."""

    def owed(self, *, readers: bool) -> Mapping[Hashable, int]:
        """Return how many bytes each port owes; without `readers`, only those for the host."""

    async def leave(self, patience: float) -> None:
        """Report to the other end that we leave, and wait until it has taken what was sent."""

    async def say_what_was_lost(self) -> None:
        """Log what was dropped since `begin_ending`; called after everything has ended."""


class DeviceSource(Source):
    """A device, with the ports of one manager."""

    def __init__(
        self, device: Device, manager: PortManager, *, once: bool = False, patience: float = 0.0
    ) -> None:
        self._connection = Connection(device, manager, once=once, patience=patience)
        self._device = device
        self._manager = manager
        self._joint: Joint | None = None
        #: How many bytes each port had dropped before.
        self._before: dict[Port, int] = {}

    @override
    @property
    def url(self) -> str:
        return self._device.url

    @override
    @property
    def lost(self) -> trio.Event:
        return self._connection.lost

    @override
    @property
    def reason(self) -> str:
        return self._connection.reason

    @override
    def reopen_files(self) -> None:
        self._device.reopen_files()

    @override
    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        await self._connection.run(task_status)

    @override
    async def begin_ending(self) -> None:
        self._joint = self._connection.joint
        ports = self._manager.ports.values()
        self._before = {port: port.counters.dropped for port in ports}
        if self._joint is not None:
            await self._joint.begin_ending()
        else:
            await self._manager.begin_ending(hold=True)

    @override
    def owed(self, *, readers: bool) -> Mapping[Hashable, int]:
        owed: Counter[Hashable] = Counter()
        if self._joint is not None and not self._joint.stopped.is_set():
            owed.update(self._joint.owed())
        if readers:
            open_ports = (port for port in self._manager.ports.values() if port.openers)
            owed.update({port.id: port.owed() for port in open_ports})
        return owed

    @override
    async def leave(self, patience: float) -> None:
        if self._joint is not None and not self._joint.stopped.is_set():
            await self._joint.leave(patience)

    @override
    async def say_what_was_lost(self) -> None:
        await in_portions(Port.give_up, self._before)
        dropped = Counter(dict(self._joint.dropped_by_host()) if self._joint is not None else {})
        names = {port.id: port.name for port in self._before}
        for port, before in self._before.items():
            if size := port.counters.dropped - before:
                dropped[port.id] += size
        lost = [
            (" ".join((f"vcon{port_id}", *_quoted(names.get(port_id, b"")))), size)
            for port_id, size in sorted(dropped.items())
            if size > 0
        ]
        say_what_was_lost(log, "the mount has ended", lost)


def _quoted(name: bytes) -> Sequence[str]:
    return [repr(os.fsdecode(name))] if name else []

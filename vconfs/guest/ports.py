"""All ports of the guest end. They outlive the device behind them."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, Protocol

import trio
from attrs import Factory, define, field

from vconfs.guest.options import PortOptions
from vconfs.guest.port import MountEnd, Port
from vconfs.link.taps import Taps
from vconfs.system.log_once import LogOnce
from vconfs.system.tasks import PORTION, in_portions

log: Final = logging.getLogger(__name__)


class PortObserver(Protocol):
    """An observer of the ports. Its methods are called at once, and must not wait."""

    def port_added(self, port: Port) -> None:
        """Called when a port was added."""

    def port_removed(self, port: Port) -> None:
        """Called when a port was removed."""

    def port_renamed(self, port: Port, old: bytes) -> None:
        """Called when a port's name has changed; `old` is the one before, possibly empty."""

    def port_changed(self, port: Port) -> None:
        """Called when anything that `Port.poll` or the status depends on may have changed."""


@define(eq=False)
class PortManager:
    """The ports by id; notifies its observers when ports come, go or change.

    Ports stay when their device goes away, and continue with the next device, so programs keep
    them open.
    """

    #: Returns the options for a port; called when it is added.
    options_for: Callable[[int], PortOptions] = field(default=lambda port_id: PortOptions())
    #: The name of the guest, if these are the host's side of its ports; else empty.
    guest: str = field(init=False, default="")
    ports: dict[int, Port] = field(init=False, factory=dict)
    observers: list[PortObserver] = field(init=False, factory=list)
    mount_end: MountEnd = field(init=False, factory=MountEnd)
    #: The programs that watch what passes through the ports.
    taps: Taps[Port] = field(
        init=False,
        default=Factory(lambda it: Taps(it.ports, lambda port: port.host_connected), True),
    )
    #: Returns how many bytes of a port a host end in this process has dropped.
    dropped_by_host: Callable[[int], int] | None = field(init=False, default=None)
    #: The number of messages that the device may not send and that belong to no port.
    ignored: int = field(init=False, default=0)
    #: Name -> the ids of the ports with this name, in order.
    _named: dict[bytes, list[int]] = field(init=False, factory=dict)
    _trouble: LogOnce = field(init=False, factory=lambda: LogOnce(log))

    @contextmanager
    def observing(self, observer: PortObserver) -> Iterator[None]:
        """Notify an observer of the ports that are there, and of changes while the block runs."""
        self.observers.append(observer)
        try:
            for port in list(self.ports.values()):
                observer.port_added(port)
            yield
        finally:
            self.observers.remove(observer)

    def add(self, port_id: int) -> Port:
        """Return the port with this id; add it if it is not there."""
        port = self.ports.get(port_id)
        if port is None:
            options = self.options_for(port_id)
            port = Port(port_id, options, self._changed, self.mount_end, self.guest)
            self.ports[port_id] = port
            port.dropped_by_host = partial(self._dropped_by_host, port_id)
            self.taps.added(port)
            for observer in self.observers:
                observer.port_added(port)
        return port

    def remove(self, port_id: int) -> None:
        """Remove a port; its openers get errors from now on."""
        port = self.ports.pop(port_id, None)
        if port is None:
            return
        self._forget_name(port)
        port.remove()
        self.taps.removed(port)
        for observer in self.observers:
            observer.port_removed(port)

    async def remove_detached(self) -> None:
        """Remove the ports that an earlier device had and the present one does not have.

        After each portion, other tasks have a turn; ports that are attached meanwhile stay.
        """
        missing = deque(port for port in self.ports.values() if not port.attached)
        while missing:
            for _ in range(min(PORTION, len(missing))):
                port = missing.popleft()  # freeing them takes time, too
                if not port.attached and self.ports.get(port.id) is port:
                    self.remove(port.id)
            await trio.lowlevel.checkpoint()

    def rename(self, port: Port, name: bytes) -> None:
        """Set a port's name; empty for no name."""
        old = port.name
        if old == name:
            return
        self._forget_name(port)
        port.name = name
        if name:
            ids = self._named.setdefault(name, [])
            insort(ids, port.id)
            if len(ids) > 1:
                self._warn_of_twin(port.id, ids)
        for observer in self.observers:
            observer.port_renamed(port, old)
        self._changed(port)

    async def begin_ending(self, *, hold: bool) -> None:
        """Refuse writes from now on; with `hold`, also ask the hosts to send nothing more.

        The hosts, and writers that wait, learn of it in portions.
        """
        self.mount_end.begun, self.mount_end.holds = True, hold
        await in_portions(Port.begin_ending, self.ports.values())

    async def shut(self) -> None:
        """Hang up every port for good, because the mount ends.

        From now on no call begins to wait. Those that wait return in portions.
        """
        self.mount_end.over = True
        await in_portions(Port.detach, self.ports.values())

    def by_name(self, name: bytes) -> Port | None:
        """Return the port with this name: of several, the one with the lowest id."""
        ids = self._named.get(name)
        return self.ports[ids[0]] if ids else None

    def names(self) -> Iterator[tuple[bytes, int]]:
        """Yield each name that ports have, with the lowest id of its ports."""
        for name, ids in self._named.items():
            yield name, ids[0]

    def _warn_of_twin(self, port_id: int, ids: Sequence[int]) -> None:
        """Warn that a port has the name of another one; all ports may have one name."""
        first, other = ids[0], port_id if port_id != ids[0] else ids[1]
        text = "vcon%d and vcon%d have the same name, which leads to vcon%d"
        self._trouble.warning((first, other), text, first, other, first)

    def _forget_name(self, port: Port) -> None:
        if port.name:
            ids = self._named[port.name]
            del ids[bisect_left(ids, port.id)]
            if not ids:
                del self._named[port.name]

    def ignore(self, port_id: int | None, reason: str) -> None:
        """Count a message that the host may not send, and log it once."""
        port = None if port_id is None else self.ports.get(port_id)
        if port is None:
            self.ignored += 1
        else:
            port.counters.ignored += 1
        whose = "device" if port is None else f"vcon{port.id}"
        self._trouble.warning((whose, reason), "%s: %s", whose, reason)

    def host_dropped(self, port_id: int) -> None:
        """Notify the observers that the host end in this process has dropped data of a port."""
        if port_id in self.ports:
            self._changed(self.ports[port_id])

    def _dropped_by_host(self, port_id: int) -> int | None:
        return None if self.dropped_by_host is None else self.dropped_by_host(port_id)

    def _changed(self, port: Port) -> None:
        for observer in self.observers:
            observer.port_changed(port)

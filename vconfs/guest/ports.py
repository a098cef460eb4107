"""All ports of the guest end, whatever becomes of the device behind them."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from attrs import define, field

from vconfs.guest.port import Port, PortOptions
from vconfs.system.log_once import LogOnce

log = logging.getLogger(__name__)


class PortObserver(Protocol):
    """Somebody who wants to know what becomes of the ports; called at once, must not wait."""

    def port_added(self, port: Port) -> None: ...  # noqa: D102
    def port_removed(self, port: Port) -> None: ...  # noqa: D102
    def port_renamed(self, port: Port, old: bytes) -> None: ...  # noqa: D102
    def port_changed(self, port: Port) -> None:
        """Anything that `Port.poll` or the port's status depends on may have changed."""


@define(eq=False)
class PortManager:
    """Keeps the ports by id, and tells its observers what becomes of them.

    The ports live on when their device goes away and come back to life with the next one, so
    that whoever has one open keeps it.
    """

    #: The options for a port, asked for when it is added.
    options_for: Callable[[int], PortOptions] = field(default=lambda id: PortOptions())
    ports: dict[int, Port] = field(init=False, factory=dict)
    observers: list[PortObserver] = field(init=False, factory=list)
    #: Of a host end in the same process: how many bytes of a port it has dropped.
    dropped_by_host: Callable[[int], int] | None = field(init=False, default=None)
    #: What the device sent that it may not send, outside of any port.
    ignored: int = field(init=False, default=0)
    #: The ids of the ports that have a name, in order, by their names.
    _named: dict[bytes, list[int]] = field(init=False, factory=dict)
    _trouble: LogOnce = field(init=False, factory=lambda: LogOnce(log))

    @contextmanager
    def observing(self, observer: PortObserver) -> Iterator[None]:
        """Tell a observer of the ports that are there, and of what becomes of them from now on."""
        self.observers.append(observer)
        try:
            for port in list(self.ports.values()):
                observer.port_added(port)
            yield
        finally:
            self.observers.remove(observer)

    def add(self, id: int) -> Port:
        """Add a port, or find the one that is there."""
        port = self.ports.get(id)
        if port is None:
            port = self.ports[id] = Port(id, self.options_for(id), self._changed)
            port.dropped_by_host = partial(self._dropped_by_host, id)
            for observer in self.observers:
                observer.port_added(port)
        return port

    def remove(self, id: int) -> None:
        """Take a port away; whoever has it open is told."""
        port = self.ports.pop(id, None)
        if port is None:
            return
        self._forget_name(port)
        port.remove()
        for observer in self.observers:
            observer.port_removed(port)

    def remove_detached(self) -> None:
        """Remove the ports that an earlier device had and the present one does not."""
        for port in list(self.ports.values()):
            if not port.attached:
                self.remove(port.id)

    def rename(self, port: Port, name: bytes) -> None:
        """Give a port its name; empty: none."""
        old = port.name
        if old == name:
            return
        self._forget_name(port)
        port.name = name
        if name:
            insort(self._named.setdefault(name, []), port.id)
        for observer in self.observers:
            observer.port_renamed(port, old)
        self._changed(port)

    def begin_ending(self, *, hold: bool) -> None:
        """Have every port refuse writers; with `hold`, have the host send nothing more."""
        for port in list(self.ports.values()):
            port.begin_ending(hold=hold)

    def shut(self) -> None:
        """Hang up every port for good, because the mount ends."""
        for port in list(self.ports.values()):
            port.shut()

    def by_name(self, name: bytes) -> Port | None:
        """Return the port of that name: of several, the one with the lowest id."""
        ids = self._named.get(name)
        return self.ports[ids[0]] if ids else None

    def names(self) -> Iterator[tuple[bytes, int]]:
        """Yield each name that ports have, with the lowest id of those."""
        for name, ids in self._named.items():
            yield name, ids[0]

    def _forget_name(self, port: Port) -> None:
        if port.name:
            ids = self._named[port.name]
            del ids[bisect_left(ids, port.id)]
            if not ids:
                del self._named[port.name]

    def ignore(self, id: int | None, reason: str) -> None:
        """Count something that the host may not send, and log it once."""
        port = None if id is None else self.ports.get(id)
        if port is None:
            self.ignored += 1
        else:
            port.counters.ignored += 1
        whose = "device" if port is None else f"vcon{port.id}"
        self._trouble.warning((whose, reason), "%s: %s", whose, reason)

    def host_dropped(self, id: int) -> None:
        """Tell the observers that the host end in the same process has dropped some of a port."""
        if id in self.ports:
            self._changed(self.ports[id])

    def _dropped_by_host(self, id: int) -> int | None:
        return None if self.dropped_by_host is None else self.dropped_by_host(id)

    def _changed(self, port: Port) -> None:
        for observer in self.observers:
            observer.port_changed(port)

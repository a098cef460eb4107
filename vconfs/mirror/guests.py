"""The guests of a host end, and the host's side of their ports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Protocol

import trio
from attrs import define, evolve, field

from vconfs.guest.options import PortOptions
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.host.port import HostPort
from vconfs.host.port_files import GuestFiles
from vconfs.mirror._host_side import HostSide
from vconfs.overrides import override

#: Returns the options of a guest's port, by the guest's name, the port's id and its name.
OptionsFor = Callable[[str, int, bytes], PortOptions]


class GuestObserver(Protocol):
    """An observer of the guests. Its methods are called at once, and must not wait."""

    def guest_added(self, guest: Guest) -> None:
        """Called when a guest was added."""

    def guest_removed(self, guest: Guest) -> None:
        """Called when a guest was removed."""

    def guest_changed(self, guest: Guest) -> None:
        """Called when a guest has connected, or is lost."""


@define(eq=False)
class Guest(GuestFiles):
    """One guest: the host's side of its ports, and whether it is connected."""

    name: str
    #: A number that no other guest has had.
    number: int
    _options_for: OptionsFor
    _on_change: Callable[[Guest], None]
    #: The host's side of its ports.
    manager: PortManager = field(init=False, factory=PortManager)
    connected: bool = field(init=False, default=False)
    #: Where it is connected, or was last.
    address: str = field(init=False, default="")
    #: When it connected or was lost, in seconds since 1970; at first, when it was added.
    since: float = field(init=False, factory=time.time)
    _sides: dict[Port, HostSide] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.manager.guest = self.name
        self.manager.observers.append(self)

    @override
    def guest_connected(self, address: str) -> None:
        self._change(True, address)

    @override
    def guest_lost(self) -> None:
        self._change(False, self.address)

    def _change(self, connected: bool, address: str) -> None:
        self.connected, self.address, self.since = connected, address, time.time()
        self._on_change(self)

    @override
    async def begin_ending(self) -> None:
        await self.manager.begin_ending(hold=False)  # the host end tells the guest to stop

    @override
    async def serve(self, host_port: HostPort, task_status: trio.TaskStatus[None]) -> None:
        with self._joined(host_port):
            task_status.started()
            await trio.sleep_forever()

    @contextmanager
    def _joined(self, host_port: HostPort) -> Iterator[None]:
        manager, on_drop = self.manager, host_port.counters.on_drop
        port = manager.add(host_port.id)
        self._give_options(port, host_port, host_port.name)
        if host_port.console:
            port.become_console()

        def remove() -> None:
            if manager.ports.get(port.id) is port:
                manager.remove(port.id)

        def dropped() -> None:
            on_drop()
            side.share_losses()
            manager.host_dropped(port.id)

        side = self._sides[port] = HostSide(
            host_port, port, lambda name: manager.rename(port, name), remove
        )
        host_port.sink, host_port.unread = side.take, port.owed
        host_port.kept = lambda: port.queued
        host_port.on_change, host_port.on_room = side.follow, port.room_came
        host_port.counters.on_drop = dropped
        side.follow()
        try:
            yield
        finally:
            host_port.on_change = host_port.on_room = lambda: None
            remove()
            if not port.openers:
                port.give_up()
            side.share_losses()
            host_port.kept, host_port.counters.on_drop = lambda: 0, on_drop
            self._forget(port)

    def _give_options(self, port: Port, host_port: HostPort, name: bytes) -> None:
        """Set the options of a port; its limit is always that of the host end."""
        options = self._options_for(self.name, port.id, name)
        port.set_options(evolve(options, limit=host_port.spec.host_limit))

    def _forget(self, port: Port) -> None:
        if port.removed and not port.openers:
            self._sides.pop(port, None)

    # --- called by the manager ------------------------------------------------------------

    def port_added(self, port: Port) -> None:
        """Do nothing: we have added it."""

    def port_removed(self, port: Port) -> None:
        """Do nothing: we have removed it."""

    def port_renamed(self, port: Port, old: bytes) -> None:
        """Set the options by the new name."""
        if side := self._sides.get(port):
            self._give_options(port, side.host_port, port.name)

    def port_changed(self, port: Port) -> None:
        """Pass on what has changed."""
        if side := self._sides.get(port):
            side.port_changed()
            self._forget(port)


@define(eq=False)
class Guests:
    """The guests by name; notifies its observers when guests come, go or change."""

    _options_for: OptionsFor = field(default=lambda guest, port_id, name: PortOptions())
    by_name: dict[str, Guest] = field(init=False, factory=dict)
    observers: list[GuestObserver] = field(init=False, factory=list)
    _numbers: Iterator[int] = field(init=False, factory=lambda: count(1))

    @contextmanager
    def of_guest(self, name: str) -> Iterator[Guest]:
        """Add a guest while the block runs."""
        guest = Guest(name, next(self._numbers), self._options_for, self._changed)
        self.by_name[name] = guest
        for observer in self.observers:
            observer.guest_added(guest)
        try:
            yield guest
        finally:
            del self.by_name[name]
            for observer in self.observers:
                observer.guest_removed(guest)

    @contextmanager
    def observing(self, observer: GuestObserver) -> Iterator[None]:
        """Notify an observer of the guests that are there, and of changes while the block runs."""
        self.observers.append(observer)
        try:
            for guest in self.by_name.values():
                observer.guest_added(guest)
            yield
        finally:
            self.observers.remove(observer)

    def _changed(self, guest: Guest) -> None:
        for observer in self.observers:
            observer.guest_changed(guest)

"""The guests of a host end, whose `HostPort`s are joined to the host's side of their ports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import define, evolve, field

from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.host.port import HostPort
from vconfs.host.port_files import GuestFiles
from vconfs.mirror._host_side import HostSide
from vconfs.mirror.guests import Guest, Guests
from vconfs.overrides import override


@define(eq=False)
class HostGuest(GuestFiles):
    """The files of one guest of a host end."""

    guest: Guest
    _sides: dict[Port, HostSide] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.manager.observers.append(self)

    @property
    def manager(self) -> PortManager:
        """The host's side of its ports."""
        return self.guest.manager

    @override
    def guest_connected(self, address: str) -> None:
        self.guest.change(True, address)

    @override
    def guest_lost(self) -> None:
        self.guest.change(False, self.guest.address)

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
        options = self.guest.options_for(port.id, name)
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


@contextmanager
def open_host_guest(guests: Guests, name: str) -> Iterator[HostGuest]:
    """Add a guest of a host end while the block runs."""
    with guests.of_guest(name) as guest:
        yield HostGuest(guest)

"""The guests of a mount with a folder for each: the host's side of their ports.

`Guests` knows nothing of where guests come from. Those of a host end are in `host_guests`, those of
hypervisors that have made sockets for them in `sockets`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Protocol

from attrs import define, field

from vconfs.guest.options import PortOptions
from vconfs.guest.ports import PortManager

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
class Guest:
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

    def __attrs_post_init__(self) -> None:
        self.manager.guest = self.name

    @property
    def file_name(self) -> bytes:
        """The name of its folder."""
        return os.fsencode(self.name)

    def options_for(self, port_id: int, name: bytes) -> PortOptions:
        """Return the options of its port with this id and name."""
        return self._options_for(self.name, port_id, name)

    def change(self, connected: bool, address: str) -> None:
        """Note that the guest has connected there, or was lost."""
        self.connected, self.address, self.since = connected, address, time.time()
        self._on_change(self)


@define(eq=False)
class Guests:
    """The guests by name; notifies its observers when guests come, go or change."""

    _options_for: OptionsFor = field(default=lambda guest, port_id, name: PortOptions())
    #: True if opening one of their ports may have to wait: see `Port.confirm_open`.
    opens_wait: bool = False
    by_name: dict[str, Guest] = field(init=False, factory=dict)
    observers: list[GuestObserver] = field(init=False, factory=list)
    _numbers: Iterator[int] = field(init=False, factory=lambda: count(1))

    def add(self, name: str) -> Guest:
        """Add a guest with a name that no other one has now."""
        guest = Guest(name, next(self._numbers), self._options_for, self._changed)
        self.by_name[name] = guest
        for observer in self.observers:
            observer.guest_added(guest)
        return guest

    def remove(self, guest: Guest) -> None:
        """Remove a guest; its ports have been removed before."""
        del self.by_name[guest.name]
        for observer in self.observers:
            observer.guest_removed(guest)

    @contextmanager
    def of_guest(self, name: str) -> Iterator[Guest]:
        """Add a guest while the block runs."""
        guest = self.add(name)
        try:
            yield guest
        finally:
            self.remove(guest)

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

"""A mount from beginning to end: host end, device, ports, file system, and an orderly end.

    manager = PortManager()
    async with join_embedded(host, manager), open_mount(Plan(path), manager) as ended:
        await ended.wait()

`open_mount` shows the ports of a manager as files. The manager's ports are those of a host end in
this process (`join_embedded`) or of a device (`parse_device`). `serve_mount` does all that
`vconfs mount` does: it also handles signals, reconnects, and lets data out at the end.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import trio
from attrs import define, field, frozen

from vconfs import fuse
from vconfs.errors import VconfsError
from vconfs.files.announcer import Announcer
from vconfs.files.consoles import Consoles
from vconfs.files.folder import Folder
from vconfs.files.guest_folders import GuestFolders
from vconfs.files.rules import Rule, Settings, settings_for
from vconfs.files.tree import Access
from vconfs.fs import Contents, PortFS
from vconfs.guest.connection import Connection
from vconfs.guest.devices import Device, Joint, join_embedded, parse_device
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.host.port_files import PortFiles
from vconfs.link.draining import DRAIN_TIME, drain, say_what_was_lost
from vconfs.mirror.guests import Guests
from vconfs.mirror.host_guests import HostGuest, open_host_guest
from vconfs.overrides import override
from vconfs.system.allocator import keep_freed_memory
from vconfs.system.descriptors import allow_all_descriptors
from vconfs.system.log_counts import tell_of_repeats
from vconfs.system.loop_watch import watch_loop_if_asked
from vconfs.system.signals import ENDING, answering_signals
from vconfs.system.systemd import feed_watchdog, tell_ready
from vconfs.system.tasks import in_portions, open_background

__all__ = [
    "HostMount",
    "Plan",
    "PortManager",
    "PortOptions",
    "join_embedded",
    "open_mount",
    "parse_device",
    "serve_mount",
]

log: Final = logging.getLogger(__name__)

#: Seconds that programs have to close their files when the mount ends.
_GRACE = 0.5


@frozen
class Plan:
    """The settings of a mount."""

    mountpoint: Path
    #: The device, as mount(8) and /proc/mounts show it.
    source: str = "none"
    port_options: PortOptions = field(factory=PortOptions)
    access: Access = field(factory=Access)
    allow_other: bool = False
    flags: fuse.MountFlag = fuse.MountFlag.NONE
    #: Name patterns of ports that get a pty although they are not consoles.
    ttys: Sequence[str] = ()
    rules: Sequence[Rule] = ()
    #: Seconds without progress after which the end of the mount gives up a port's data.
    drain: float = DRAIN_TIME

    def settings(self, port_id: int, name: bytes, guest: str = "") -> Settings:
        """Return the settings of the port with this id and name; of a guest, at the host's side."""
        default = Settings(self.port_options, self.access)
        return settings_for(self.rules, port_id, name, default, guest)

    def wants_pty(self, port: Port) -> bool:
        """True if a port should have a pty."""
        if (tty := self.settings(port.id, port.name).tty) is not None:
            return tty
        name = os.fsdecode(port.name)
        return port.console or any(fnmatchcase(name, pattern) for pattern in self.ttys)


@frozen
class _Ruler:
    """Applies the rules of a plan to ports when they are added and named."""

    plan: Plan

    def port_added(self, port: Port) -> None:
        if self.plan.rules:
            port.set_options(self.plan.settings(port.id, port.name).port)

    def port_renamed(self, port: Port, old: bytes) -> None:
        self.port_added(port)

    def port_removed(self, port: Port) -> None: ...
    def port_changed(self, port: Port) -> None: ...


async def serve_mount(
    plan: Plan,
    device: Device,
    *,
    once: bool = False,
    patience: float = 0.0,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Mount the ports of a device, call `ready` when they are there, and serve the mount.

    A device that is not there yet is tried again for `patience` seconds.
    It ends when it is unmounted, when a signal comes or, with `once`, when the device is lost; the
    steps of the end are in draining.py. A second signal ends it at once. Raise VconfsError or
    fuse.MountError if it fails; then nothing is left mounted.
    """
    keep_freed_memory()
    allow_all_descriptors()
    manager = PortManager(lambda port_id: plan.port_options)
    connection = Connection(device, manager, once=once, patience=patience)
    stop, hurry = trio.Event(), trio.Event()
    ending = _Ending(manager, connection)
    # Signals first: a signal between mounting and listening for it would leave a dead mount.
    with trio.open_signal_receiver(*ENDING) as signals:
        async with answering_signals(device.reopen_files), open_background() as nursery:
            nursery.start_soon(_heed_signals, signals, stop, hurry)
            nursery.start_soon(feed_watchdog)
            nursery.start_soon(tell_of_repeats)
            nursery.start_soon(_after, connection.lost.wait, stop.set)
            with trio.CancelScope() as opening:
                nursery.start_soon(_after, stop.wait, opening.cancel)
                await nursery.start(connection.run)
            if not stop.is_set():
                async with open_mount(plan, manager) as ended:
                    nursery.start_soon(_after, ended.wait, stop.set)
                    nursery.start_soon(watch_loop_if_asked)
                    ready()
                    tell_ready(f"{device.url} mounted on {plan.mountpoint}")
                    await stop.wait()
                    await ending.begin()
                    with _until(hurry, nursery):
                        await drain(lambda: ending.owed(readers=not ended.is_set()), plan.drain)
                with _until(hurry, nursery):
                    await ending.leave(plan.drain)
    await ending.say_what_was_lost()
    if connection.lost.is_set():
        raise VconfsError(f"{device.url}: {connection.reason}")


@define
class _Ending:
    """What an ending mount still owes, and what it has dropped; see draining.py."""

    _manager: PortManager
    _connection: Connection
    _joint: Joint | None = field(init=False, default=None)
    #: How many bytes each port had dropped before.
    _before: dict[Port, int] = field(init=False, factory=dict)

    async def begin(self) -> None:
        """Accept nothing more."""
        self._joint = self._connection.joint
        ports = self._manager.ports.values()
        self._before = {port: port.counters.dropped for port in ports}
        if self._joint is not None:
            await self._joint.begin_ending()
        else:
            await self._manager.begin_ending(hold=True)

    def owed(self, *, readers: bool) -> Mapping[int, int]:
        """Return how many bytes each port owes; without `readers`, only those for the host."""
        owed: Counter[int] = Counter()
        if self._joint is not None and not self._joint.stopped.is_set():
            owed.update(self._joint.owed())
        if readers:
            open_ports = (port for port in self._manager.ports.values() if port.openers)
            owed.update({port.id: port.owed() for port in open_ports})
        return owed

    async def leave(self, patience: float) -> None:
        """Tell the device that we leave, and wait until it has taken what was sent."""
        if self._joint is not None and not self._joint.stopped.is_set():
            await self._joint.leave(patience)

    async def say_what_was_lost(self) -> None:
        """Log what was dropped since `begin`; called after everything has ended."""
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


async def _heed_signals(signals: AsyncIterator[int], stop: trio.Event, hurry: trio.Event) -> None:
    async for _ in signals:
        if stop.is_set():
            hurry.set()
        stop.set()


@contextmanager
def _until(event: trio.Event, nursery: trio.Nursery) -> Iterator[None]:
    """Cancel the block when `event` is set."""
    with trio.CancelScope() as scope:
        nursery.start_soon(_after, event.wait, scope.cancel)
        yield


async def _after(wait: Callable[[], Awaitable[object]], then: Callable[[], None]) -> None:
    await wait()
    then()


@asynccontextmanager
async def open_mount(plan: Plan, manager: PortManager) -> AsyncIterator[trio.Event]:
    """Mount the ports of `manager` while the block runs.

    Yield an event that is set when another process unmounts. At the end the ports hang up, all
    waiting calls have returned, and nothing is left mounted. Raise fuse.MountError if it fails.
    """
    announcer = Announcer()
    folder = Folder.of(manager, _access_for(plan, manager), plan.access, announcer)
    async with _serve(plan, folder, announcer) as ended, open_background() as nursery:
        consoles = Consoles(
            nursery,
            announcer,
            plan.wants_pty,
            lambda port: plan.settings(port.id, port.name).access,
        )
        with manager.observing(_Ruler(plan)), manager.observing(consoles):
            yield ended


def _access_for(plan: Plan, manager: PortManager) -> Callable[[int], Access]:
    def access(port_id: int) -> Access:
        port = manager.ports.get(port_id)
        return plan.settings(port_id, port.name if port else b"").access

    return access


class HostMount(PortFiles):
    """A mount of the host's side of ports, with a folder for each guest: for `open_fleet`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.guests: Guests = Guests(
            lambda guest, port_id, name: plan.settings(port_id, name, guest).port
        )

    @override
    def of_guest(self, name: str) -> AbstractContextManager[HostGuest]:
        return open_host_guest(self.guests, name)

    @override
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[trio.Event]:
        """Raise fuse.MountError if the folder cannot be mounted on."""
        plan, announcer = self.plan, Announcer()

        def access(guest: str, port_id: int, name: bytes) -> Access:
            return plan.settings(port_id, name, guest).access

        folders = GuestFolders(self.guests, access, plan.access, announcer)
        async with _serve(plan, folders, announcer) as ended:
            yield ended


@asynccontextmanager
async def _serve(plan: Plan, contents: Contents, announcer: Announcer) -> AsyncIterator[trio.Event]:
    filesystem = PortFS(contents, announcer)
    mount = fuse.mount(
        plan.mountpoint, source=plan.source, allow_other=plan.allow_other, flags=plan.flags
    )
    announcer.file_system = mount.number
    with closing(mount), filesystem.following():
        async with open_background() as nursery:
            ended = trio.Event()
            session = fuse.Session(filesystem, mount.device)
            nursery.start_soon(filesystem.idle_opens.run)
            await nursery.start(_run_session, session, ended)
            try:
                async with open_background() as announcing:
                    # Not relative: for a process inside the folder, "." is what is below the mount.
                    announcing.start_soon(announcer.run, plan.mountpoint.absolute())
                    yield ended
            finally:
                with trio.CancelScope(shield=True):
                    await filesystem.shut()
                    mount.unmount()
                    await session.settle()
                    with trio.move_on_after(_GRACE):  # readers close when they see end of file
                        await filesystem.wait_all_closed()


async def _run_session(
    session: fuse.Session, ended: trio.Event, task_status: trio.TaskStatus[None]
) -> None:
    await session.run(task_status)
    ended.set()

"""A mount from beginning to end: host end, device, ports, file system, and an orderly end.

    manager = PortManager()
    async with join_embedded(host, manager), open_mount(Plan(path), manager) as ended:
        await ended.wait()

`open_mount` shows the ports of a manager as files. The manager's ports are those of a host end in
this process (`join_embedded`) or of a device (`parse_device`). `serve_mount` does all that
`vconfs mount` does: it also handles signals, reconnects, and lets data out at the end.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
)
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import trio
from attrs import field, frozen

from vconfs import fuse
from vconfs.errors import VconfsError
from vconfs.files.announcer import Announcer
from vconfs.files.consoles import Consoles
from vconfs.files.folder import Folder
from vconfs.files.guest_folders import GuestFolders
from vconfs.files.rules import Rule, Settings, settings_for
from vconfs.files.tree import Access
from vconfs.fs import Contents, PortFS
from vconfs.guest.devices import Device, join_embedded, parse_device
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.guest.sources import DeviceSource, Source
from vconfs.host.port_files import PortFiles
from vconfs.link.draining import DRAIN_TIME, drain
from vconfs.mirror.guests import Guests
from vconfs.mirror.host_guests import HostGuest, open_host_guest
from vconfs.mirror.sockets import SocketGuests, Sockets
from vconfs.overrides import override
from vconfs.system.allocator import keep_freed_memory
from vconfs.system.descriptors import allow_all_descriptors
from vconfs.system.log_counts import tell_of_repeats
from vconfs.system.loop_watch import watch_loop_if_asked
from vconfs.system.own_mounts import serving
from vconfs.system.signals import ENDING, answering_signals
from vconfs.system.systemd import feed_watchdog, tell_ready
from vconfs.system.tasks import open_background

__all__ = [
    "HostMount",
    "Plan",
    "PortManager",
    "PortOptions",
    "Sockets",
    "join_embedded",
    "open_mount",
    "parse_device",
    "serve_mount",
]

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
    device: Device | Sockets,
    *,
    once: bool = False,
    patience: float = 0.0,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Mount the ports of a device, call `ready` when they are there, and serve the mount.

    A device that is not there yet is tried again for `patience` seconds. `Sockets` are shown with a
    folder for each guest.
    It ends when it is unmounted, when a signal comes or, with `once`, when the device is lost; the
    steps of the end are in draining.py. A second signal ends it at once. Raise VconfsError or
    fuse.MountError if it fails; then nothing is left mounted.
    """
    if isinstance(device, Sockets):
        mount = HostMount(plan, opens_wait=True)
        await _serve_source(plan, SocketGuests(device, mount.guests), mount.opened, ready)
        return
    manager = PortManager(lambda port_id: plan.port_options)
    source = DeviceSource(device, manager, once=once, patience=patience)
    await _serve_source(plan, source, partial(open_mount, plan, manager), ready)


async def _serve_source(
    plan: Plan,
    source: Source,
    mounted: Callable[[], AbstractAsyncContextManager[trio.Event]],
    ready: Callable[[], None],
) -> None:
    keep_freed_memory()
    allow_all_descriptors()
    stop, hurry = trio.Event(), trio.Event()
    place = fuse.place_of(plan.mountpoint)
    # Signals first: a signal between mounting and listening for it would leave a dead mount.
    with trio.open_signal_receiver(*ENDING) as signals, serving(place):
        async with answering_signals(source.reopen_files), open_background() as nursery:
            nursery.start_soon(_heed_signals, signals, stop, hurry)
            nursery.start_soon(feed_watchdog)
            nursery.start_soon(tell_of_repeats)
            nursery.start_soon(_after, source.lost.wait, stop.set)
            with trio.CancelScope() as opening:
                nursery.start_soon(_after, stop.wait, opening.cancel)
                await nursery.start(source.run)
            if not stop.is_set():
                async with mounted() as ended:
                    nursery.start_soon(_after, ended.wait, stop.set)
                    nursery.start_soon(watch_loop_if_asked)
                    ready()
                    tell_ready(f"{source.url} mounted on {plan.mountpoint}")
                    await stop.wait()
                    await source.begin_ending()
                    with _until(hurry, nursery):
                        await drain(lambda: source.owed(readers=not ended.is_set()), plan.drain)
                with _until(hurry, nursery):
                    await source.leave(plan.drain)
    await source.say_what_was_lost()
    if source.lost.is_set():
        raise VconfsError(f"{source.url}: {source.reason}")


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
    """A mount of the host's side of ports, with a folder for each guest."""

    def __init__(self, plan: Plan, *, opens_wait: bool = False) -> None:
        self.plan = plan
        self.guests: Guests = Guests(
            lambda guest, port_id, name: plan.settings(port_id, name, guest).port, opens_wait
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
    with closing(mount), serving(mount.mountpoint), filesystem.following():
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
                    # In a thread, because the kernel may let it wait for other mounts.
                    await trio.to_thread.run_sync(mount.unmount)
                    await session.settle()
                    with trio.move_on_after(_GRACE):  # readers close when they see end of file
                        await filesystem.wait_all_closed()


async def _run_session(
    session: fuse.Session, ended: trio.Event, task_status: trio.TaskStatus[None]
) -> None:
    await session.run(task_status)
    ended.set()

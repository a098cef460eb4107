"""A mount from beginning to end: host end, device, ports, file system, and an orderly end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import trio
from attrs import field, frozen

from vconfs import fuse
from vconfs.announcer import Announcer
from vconfs.background import open_background
from vconfs.device.embedded import open_embedded
from vconfs.fs import Access, PortFS
from vconfs.host.host import open_host
from vconfs.host.port import HostPortSpec
from vconfs.port import PortOptions
from vconfs.ports import PortManager


@frozen
class Plan:
    """What is to be mounted, and how."""

    mountpoint: Path
    host_ports: Sequence[HostPortSpec]
    dialect: str = "v8"
    port_options: PortOptions = field(factory=PortOptions)
    access: Access = field(factory=Access)
    allow_other: bool = False
    device: str = "embedded"


async def serve_mount(plan: Plan, ready: Callable[[], None] = lambda: None) -> None:
    """Mount, call `ready` when the ports are there, and serve until unmounted or signalled.

    Raises HostError or fuse.MountError, and then has left nothing behind.
    """
    manager = PortManager(lambda id: plan.port_options)
    announcer = Announcer()
    filesystem = PortFS(manager, lambda id: plan.access, announcer)
    async with (
        open_host(plan.host_ports) as host,
        open_embedded(host, manager, plan.dialect),
        open_background() as nursery,
    ):
        mount = fuse.mount(plan.mountpoint, source=plan.device, allow_other=plan.allow_other)
        try:
            session = fuse.Session(filesystem, mount.device)
            ended = trio.Event()
            await nursery.start(_run_session, session, ended)
            await nursery.start(_end_on_signal, manager, mount)
            nursery.start_soon(announcer.run, plan.mountpoint)
            ready()
            await ended.wait()
        finally:
            mount.close()


async def _run_session(
    session: fuse.Session, ended: trio.Event, task_status: trio.TaskStatus[None]
) -> None:
    await session.run(task_status)
    ended.set()


async def _end_on_signal(
    manager: PortManager, mount: fuse.Mount, task_status: trio.TaskStatus[None]
) -> None:
    """Hang up the ports, let everybody who waited on them have their answer, then unmount."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            manager.shut()
            mount.unmount()

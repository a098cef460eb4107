"""A whole run of a host end: its ports, its guests, and an orderly end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import frozen

from vconfs.errors import VconfsError
from vconfs.host.control_socket import serve_control
from vconfs.host.fleet import NO_LIMITS, Fleet, GuestSpec, Limits, Template, open_fleet
from vconfs.host.listeners import Listener
from vconfs.host.port_files import PortFiles
from vconfs.link.draining import DRAIN_TIME
from vconfs.system.allocator import keep_freed_memory
from vconfs.system.descriptors import allow_all_descriptors
from vconfs.system.log_counts import tell_of_repeats
from vconfs.system.loop_watch import watch_loop_if_asked
from vconfs.system.signals import ENDING, answering_signals
from vconfs.system.systemd import feed_watchdog, tell_ready
from vconfs.system.tasks import open_background


@frozen
class Guests:
    """Which guests there are, and where they connect."""

    known: Sequence[GuestSpec] = ()
    #: Listeners for any guest.
    listeners: Sequence[Listener] = ()
    #: What guests have that come by themselves; None if all guests are known.
    template: Template | None = None
    limits: Limits = NO_LIMITS
    #: True if there can be several guests, whose names belong into the log.
    several: bool = True
    #: All guests that are known, and a sample of those that may come.
    samples: Sequence[GuestSpec] = ()

    @property
    def urls(self) -> list[str]:
        """All addresses where guests connect."""
        listeners = [*self.listeners, *(it for guest in self.known for it in guest.listeners)]
        return [listener.url for listener in listeners]


@frozen
class Plan:
    """What a host end serves, and how."""

    guests: Guests
    #: The path of the control socket; None for no control socket.
    control: str | None = None
    #: The host and the port where Prometheus scrapes; None for no metrics.
    metrics: tuple[str, int] | None = None
    #: Seconds without progress after which an ending drops a port's data.
    drain: float = DRAIN_TIME
    #: What mounts the ports with the chardev mount; None for no mount.
    files: PortFiles | None = None


async def serve_host(plan: Plan, ready: Callable[[], None] = lambda: None) -> None:
    """Open the ports of all guests, listen, call `ready`, and serve the guests.

    Return after a signal, when no more guests can connect, or when the mount of the ports' files is
    unmounted, once data is delivered (see draining.py). A second signal ends it at once. Raise
    VconfsError if the host end cannot start; nothing is left behind then.
    """
    keep_freed_memory()
    allow_all_descriptors()
    stop = trio.Event()
    fleet: Fleet | None = None
    try:
        with trio.open_signal_receiver(*ENDING) as signals:
            async with open_background() as nursery:
                nursery.start_soon(feed_watchdog)
                nursery.start_soon(tell_of_repeats)
                nursery.start_soon(_heed_signals, signals, stop, nursery.cancel_scope)
                async with (
                    open_fleet(
                        plan.guests.template,
                        patience=plan.drain,
                        limits=plan.guests.limits,
                        labelled=plan.guests.several,
                        files=plan.files,
                    ) as fleet,
                    answering_signals(fleet.reopen_files),
                    open_background() as listening,
                    _mounted(plan.files, stop),
                ):
                    with trio.CancelScope() as serving:
                        nursery.start_soon(_drain_when_asked, fleet, stop, serving)
                        await _start(plan, fleet, listening)
                        nursery.start_soon(watch_loop_if_asked)
                        ready()
                        tell_ready(f"listening on {_summary(plan.guests.urls)}")
                        await fleet.deserted.wait()
                    if not serving.cancel_called:
                        await fleet.end()
    finally:
        if fleet is not None:
            fleet.say_what_was_lost()


@asynccontextmanager
async def _mounted(files: PortFiles | None, stop: trio.Event) -> AsyncIterator[None]:
    """Mount the files of ports, if there is a mount; set `stop` when it is unmounted.

    The mount ends before the ports do, so that their readers see an end of file.
    """
    if files is None:
        yield
        return
    async with files.opened() as unmounted, open_background() as nursery:
        nursery.start_soon(_stop_when, unmounted, stop)
        yield


async def _stop_when(event: trio.Event, stop: trio.Event) -> None:
    await event.wait()
    stop.set()


async def _start(plan: Plan, fleet: Fleet, nursery: trio.Nursery) -> None:
    for guest in plan.guests.known:
        await fleet.add(guest)
    if plan.control is not None:
        await nursery.start(serve_control, fleet, plan.control)
    if plan.metrics is not None:
        await nursery.start(_server_of_metrics(), fleet, *plan.metrics)
    for listener in plan.guests.listeners:
        await nursery.start(fleet.listen, listener)


def _server_of_metrics() -> Callable[..., Awaitable[None]]:
    try:
        from vconfs.host._metrics import serve_metrics
    except ImportError as error:
        raise VconfsError(
            f"--metrics needs the package {error.name}: pip install 'vconfs[metrics]', or on Debian"
            " apt-get install python3-prometheus-client python3-h11"
        ) from None
    return serve_metrics


def _summary(urls: Sequence[str]) -> str:
    return ", ".join(urls) if len(urls) <= 3 else f"{len(urls)} addresses"


async def _heed_signals(
    signals: AsyncIterator[int], stop: trio.Event, at_once: trio.CancelScope
) -> None:
    async for _ in signals:
        if stop.is_set():
            at_once.cancel()
        stop.set()


async def _drain_when_asked(fleet: Fleet, stop: trio.Event, serving: trio.CancelScope) -> None:
    await stop.wait()
    await fleet.end()
    serving.cancel()

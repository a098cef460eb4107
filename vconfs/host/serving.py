"""A whole run of a host end: its ports, its guests, and an orderly end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import trio
from attrs import frozen

from vconfs.host.control_socket import serve_control
from vconfs.host.host import Host, open_host
from vconfs.host.listeners import Listener
from vconfs.host.port import HostPortSpec
from vconfs.link.draining import DRAIN_TIME
from vconfs.system.allocator import keep_freed_memory
from vconfs.system.descriptors import allow_all_descriptors
from vconfs.system.log_counts import tell_of_repeats
from vconfs.system.loop_watch import watch_loop_if_asked
from vconfs.system.signals import ENDING, answering_signals
from vconfs.system.systemd import feed_watchdog, tell_ready
from vconfs.system.tasks import open_background


@frozen
class Plan:
    """Which ports to open, and where to listen for guests."""

    listener: Listener
    ports: Sequence[HostPortSpec] = ()
    #: The path of the control socket; None for no control socket.
    control: str | None = None
    #: Seconds without progress after which an ending drops a port's data.
    drain: float = DRAIN_TIME


async def serve_host(plan: Plan, ready: Callable[[], None] = lambda: None) -> None:
    """Open the ports, listen, call `ready`, and serve one guest after the other.

    Return after a signal, or when no more guests can connect, once data is delivered (see
    draining.py). A second signal ends it at once. Raise VconfsError if the host end cannot start;
    nothing is left behind then.
    """
    keep_freed_memory()
    allow_all_descriptors()

    class Status(trio.TaskStatus[None]):
        def started(self, value: None = None) -> None:
            nursery.start_soon(watch_loop_if_asked)
            ready()
            tell_ready(f"listening on {plan.listener.url}")

    stop = trio.Event()
    host: Host | None = None
    try:
        with trio.open_signal_receiver(*ENDING) as signals:
            async with open_background() as nursery:
                nursery.start_soon(feed_watchdog)
                nursery.start_soon(tell_of_repeats)
                nursery.start_soon(_heed_signals, signals, stop, nursery.cancel_scope)
                async with (
                    open_host(plan.ports, patience=plan.drain) as host,
                    answering_signals(host.reopen_files),
                ):
                    if plan.control is not None:
                        await nursery.start(serve_control, host, plan.control)
                    with trio.CancelScope() as serving:
                        nursery.start_soon(_drain_when_asked, host, stop, serving)
                        await plan.listener.serve(host, Status())
                    if not serving.cancel_called:
                        await host.end()
    finally:
        if host is not None:
            host.say_what_was_lost()


async def _heed_signals(
    signals: AsyncIterator[int], stop: trio.Event, at_once: trio.CancelScope
) -> None:
    async for _ in signals:
        if stop.is_set():
            at_once.cancel()
        stop.set()


async def _drain_when_asked(host: Host, stop: trio.Event, serving: trio.CancelScope) -> None:
    await stop.wait()
    await host.end()
    serving.cancel()

"""A host end from beginning to end: its ports, whoever comes as a guest, and an orderly end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import trio
from attrs import frozen

from vconfs.host.control import serve_control
from vconfs.host.host import Host, open_host
from vconfs.host.listening import Listener
from vconfs.host.port import HostPortSpec
from vconfs.link.draining import DRAIN_TIME
from vconfs.system.allocator import keep_freed_memory
from vconfs.system.descriptors import allow_all_descriptors
from vconfs.system.log_counts import tell_of_repeats
from vconfs.system.signals import ENDING, answering_signals
from vconfs.system.systemd import feed_watchdog, tell_ready
from vconfs.system.tasks import open_background


@frozen
class Plan:
    """Which ports there are to be, and where guests come."""

    listener: Listener
    ports: Sequence[HostPortSpec] = ()
    #: The path of the control socket; None: no control.
    control: str | None = None
    #: Seconds without progress after which an ending gives a port's data up.
    drain: float = DRAIN_TIME


async def serve_host(plan: Plan, ready: Callable[[], None] = lambda: None) -> None:
    """Open the ports, listen, call `ready`, and serve one guest after the other.

    It ends when a signal asks for it, or when no guest can come any more; draining.py tells how.
    A second signal ends it at once. Raises VconfsError, and has then left nothing behind.
    """
    keep_freed_memory()
    allow_all_descriptors()

    class Status(trio.TaskStatus[None]):
        def started(self, value: None = None) -> None:
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
                        await host.drain()
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
    await host.drain()
    serving.cancel()

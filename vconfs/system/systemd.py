"""Notifications to a service manager by sd_notify(3): that we are ready, and that we are alive.

Without NOTIFY_SOCKET in the environment there is no service manager, and nothing is sent.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio
from systemd_watchdog.systemd_watchdog import WatchDog

from vconfs.syntax.printable import printable

#: How many pings we send in the time in which systemd expects one.
_PINGS: Final = 3


def tell_ready(status: str) -> None:
    """Report that we are ready, and what we serve, as text for `systemctl status`."""
    with _manager() as manager, suppress(OSError):
        manager.status(printable(status))  # a line end would begin another field of the message
        manager.ready()


async def feed_watchdog() -> None:
    """Report repeatedly that our event loop is alive, until cancelled."""
    with _manager() as manager:
        while manager.is_enabled:
            with suppress(OSError):  # the manager restarts or is busy: the next ping may succeed
                manager.notify()
            await trio.sleep(manager.timeout_td.total_seconds() / _PINGS)


@contextmanager
def _manager() -> Iterator[WatchDog]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as way:
        yield WatchDog(way)

"""What a service manager is told of us by sd_notify(3): that we are ready, and that we live.

Without one, which is without NOTIFY_SOCKET in the environment, nothing is told.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio
from systemd_watchdog.systemd_watchdog import WatchDog

from vconfs.syntax.printable import printable

#: Pings in the time within which systemd wants one.
_PINGS: Final = 3


def tell_ready(status: str) -> None:
    """Tell that we serve now, and what, in words for `systemctl status`."""
    with _manager() as manager, suppress(OSError):
        manager.status(printable(status))  # a line is a field of the message
        manager.ready()


async def feed_watchdog() -> None:
    """Tell again and again that we live, for as long as our event loop does; until cancelled."""
    with _manager() as manager:
        while manager.is_enabled:
            with suppress(OSError):  # it restarts, or is busy: the next ping may come through
                manager.notify()
            await trio.sleep(manager.timeout_td.total_seconds() / _PINGS)


@contextmanager
def _manager() -> Iterator[WatchDog]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as way:
        yield WatchDog(way)

"""Reporting an open to the host although the program has not used the port yet.

If a program opens a port and closes it at once, as tar, rsync and indexers do with each file of a
tree, the host does not need to know. If it opens a port and then waits for something else, the host
may be waiting for it. The two cases differ only by how long the port stays open.
"""

from __future__ import annotations

from typing import Final

import trio

from vconfs.guest.opener import Opener
from vconfs.guest.port import Port

#: Seconds after which the host is told that a port is open, even if it is unused.
IDLE_SECONDS: Final = 0.1


class IdleOpens:
    """Reports to the host the ports that have been open for a while: one task for all ports."""

    def __init__(self) -> None:
        #: In the order of their deadlines.
        self._waiting: dict[Opener, tuple[Port, float]] = {}
        self._came = trio.lowlevel.ParkingLot()

    def add(self, port: Port, opener: Opener) -> None:
        """Report this open to the host later, unless it is discarded first."""
        self._waiting[opener] = port, trio.current_time() + IDLE_SECONDS
        self._came.unpark_all()

    def discard(self, opener: Opener) -> None:
        """Forget an opener that has closed its port."""
        self._waiting.pop(opener, None)

    async def run(self) -> None:
        """Report opens until cancelled."""
        while True:
            while not self._waiting:
                await self._came.park()
            opener, (port, deadline) = next(iter(self._waiting.items()))
            await trio.sleep_until(deadline)
            if self._waiting.pop(opener, None):
                port.tell_open()

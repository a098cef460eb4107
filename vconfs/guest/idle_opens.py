"""Opens of which the host is told though nothing has been done with them yet.

A program that opens a port and closes it again, as tar, rsync and indexers do with each file of a
tree, is none of the host's business. One that opens a port and then waits for something else is:
its host may be waiting for it. The two differ only by how long the port stays open.
"""

from __future__ import annotations

from typing import Final

import trio

from vconfs.guest.port import Opener, Port

#: Seconds after which the host is told of a port that is open and was not used yet.
IDLE_SECONDS: Final = 0.1


class IdleOpens:
    """Tells the hosts of ports that have been open for a while: one task for all ports."""

    def __init__(self) -> None:
        #: In the order in which the time of each is over.
        self._waiting: dict[Opener, tuple[Port, float]] = {}
        self._came = trio.lowlevel.ParkingLot()

    def add(self, port: Port, opener: Opener) -> None:
        """Let the host be told of this open, unless it is discarded first."""
        self._waiting[opener] = port, trio.current_time() + IDLE_SECONDS
        self._came.unpark_all()

    def discard(self, opener: Opener) -> None:
        """Forget an opener that has closed its port."""
        self._waiting.pop(opener, None)

    async def run(self) -> None:
        """Tell the hosts until cancelled."""
        while True:
            while not self._waiting:
                await self._came.park()
            opener, (port, deadline) = next(iter(self._waiting.items()))
            await trio.sleep_until(deadline)
            if self._waiting.pop(opener, None):
                port.tell_open()

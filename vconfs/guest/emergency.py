"""A console's output while its device is up and its port is not there yet.

It goes byte by byte through the device's config space, where that is offered (virtio 1.2 §5.3.4,
EMERG_WRITE), so that what a login or a kernel log wrote meanwhile reaches the host even if the
port never comes. Elsewhere it waits: a pty keeps what is written to it (see console.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from vconfs.link.link import Link
from vconfs.protocol.dialect import Guest
from vconfs.protocol.events import Buffer

#: The port whose output can go out early.
CONSOLE: Final = 0
#: So many bytes go out at once; then other tasks have their turn.
_HELPING: Final = 256


class EmergencyLine:
    """A way to the host that takes output of one console and does nothing else."""

    throttles = True  # by not taking more at once; there is no host to wait for
    can_refuse = False
    in_flight = 0

    def __init__(self, link: Link, end: Guest) -> None:
        self._link = link
        self._end = end

    @property
    def works(self) -> bool:
        """Whether the device takes such output."""
        return bool(self._end.emergency_writes(b"?"))

    def has_room(self, id: int) -> bool:
        """Whether a write would take something: it would."""
        return True

    def send_nowait(self, id: int, data: Buffer) -> int:
        """Send the first bytes of `data`; how many."""
        some = memoryview(data)[:_HELPING]
        for write in self._end.emergency_writes(some):
            self._link.write_config(write.offset, write.data)
        return len(some)

    def send_later(self, id: int, data: Buffer) -> int:
        """Send the first bytes of `data`: there is always room for some."""
        return self.send_nowait(id, data)

    async def send(self, id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """Send the first bytes of `data`, if that is still `wanted` in our turn; how many."""
        await trio.lowlevel.checkpoint()
        return self.send_nowait(id, data) if wanted() else 0

    def nudge(self, id: int) -> None:
        """Nothing: nobody waits here for long."""

    def open_port(self, id: int, opened: bool) -> None:
        """Nothing: it is told when the port is there."""

    def throttle(self, id: int, on: bool, seen: Callable[[], None]) -> None:
        """Nothing: no data comes from the host."""

    def refill(self, port: object) -> None:
        """Nothing: no data comes from the host."""

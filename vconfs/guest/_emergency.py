"""A console's output while its device is up and its port is not there yet.

If the device offers it (virtio 1.2 §5.3.4, EMERG_WRITE), output goes byte by byte through the
device's config space, so that what a login or a kernel log writes meanwhile reaches the host even
if the port never comes. Otherwise the output waits: a pty keeps what is written to it (see
files/consoles.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from vconfs.link.link import Link
from vconfs.link.taps import PortTap
from vconfs.protocol.dialect import Guest
from vconfs.protocol.events import Buffer

#: The id of the port whose output can go out before the port is there.
CONSOLE: Final = 0
#: The most bytes sent at once, so that other tasks have their turn.
_SHARE: Final = 256


class EmergencyLine:
    """A line to the host that takes the output of one console and does nothing else."""

    throttles = True  # only in that it takes little at once; there is no host to wait for
    can_refuse = False
    in_flight = 0

    def __init__(self, link: Link, end: Guest, taps: Mapping[int, PortTap]) -> None:
        self._link = link
        self._end = end
        self._taps = taps

    @property
    def works(self) -> bool:
        """True if the device takes such output."""
        return bool(self._end.emergency_writes(b"?"))

    def has_room(self, port_id: int) -> bool:
        """Return True: a write always takes something."""
        return True

    def want_room(self, port_id: int) -> None:
        """Do nothing: there is always room."""

    def send_nowait(self, port_id: int, data: Buffer) -> int:
        """Send the first bytes of `data`; return how many."""
        some = memoryview(data)[:_SHARE]
        if (tap := self._taps.get(port_id)) is not None:
            tap.sent(some)
        for write in self._end.emergency_writes(some):
            self._link.write_config(write.offset, write.data)
        return len(some)

    def send_later(self, port_id: int, data: Buffer) -> int:
        """Send the first bytes of `data`; there is always room for some."""
        return self.send_nowait(port_id, data)

    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """Send the first bytes of `data`, if still `wanted` after a checkpoint; return how many."""
        await trio.lowlevel.checkpoint()
        return self.send_nowait(port_id, data) if wanted() else 0

    def nudge(self, port_id: int) -> None:
        """Do nothing: no send waits here."""

    def open_port(self, port_id: int, opened: bool) -> None:
        """Do nothing: the host is told when the port is there."""

    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None:
        """Do nothing: no data comes from the host."""

    def refill(self, port_id: int) -> None:
        """Do nothing: no data comes from the host."""

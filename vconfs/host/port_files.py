"""What a host end needs of a mount that shows the host's side of its ports as files.

The mount is made of layers above this one (see vconfs/mirror/), so the host end knows it only by
these protocols.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

import trio

from vconfs.host.port import HostPort


class GuestFiles(Protocol):
    """The files of one guest's ports."""

    def guest_connected(self, address: str) -> None:
        """Called when the guest has connected there."""

    def guest_lost(self) -> None:
        """Called when the guest has no connection any more."""

    async def begin_ending(self) -> None:
        """Refuse what programs write from now on, because the host end, or the guest, ends."""

    async def serve(self, port: HostPort, task_status: trio.TaskStatus[None]) -> None:
        """Show a port as a file until cancelled; call `started` when it is there."""


class PortFiles(Protocol):
    """The files of the ports of all guests."""

    def of_guest(self, name: str) -> AbstractContextManager[GuestFiles]:
        """Show a folder for the ports of a guest while the block runs."""

    def opened(self) -> AbstractAsyncContextManager[trio.Event]:
        """Mount the files while the block runs; the event is set when another unmounts them."""

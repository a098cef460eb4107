"""The open files of a mount, and who polls them."""

from __future__ import annotations

import pyfuse3
import trio
from attrs import define

from vconfs.files.lines_reader import LinesReader
from vconfs.guest.opener import Opener
from vconfs.guest.port import Port


@define(eq=False)
class OpenFile:
    """One open file: a port's, or one of lines."""

    port: Port | LinesReader
    opener: Opener
    flags: int
    #: What to notify of the next change, if the file is polled.
    poll_handle: pyfuse3.PollHandle | None = None


class OpenFiles:
    """The open files by their handles; an observer of the manager, for those that are polled."""

    def __init__(self) -> None:
        self.by_handle: dict[int, OpenFile] = {}
        self._polling: dict[Port | LinesReader, set[OpenFile]] = {}
        self._next_handle = 1
        self._all_closed = trio.lowlevel.ParkingLot()

    def new_handle(self) -> int:
        """Return a number that no open file or directory has had."""
        self._next_handle += 1
        return self._next_handle

    def add(self, file: OpenFile) -> int:
        """Add an open file; return its handle."""
        handle = self.new_handle()
        self.by_handle[handle] = file
        return handle

    def remove(self, handle: int) -> OpenFile:
        """Forget a file that is being closed; call `closed` afterwards."""
        file = self.by_handle.pop(handle)
        file.poll_handle = None
        polling = self._polling.get(file.port)
        if polling is not None:
            polling.discard(file)
            if not polling:
                del self._polling[file.port]
        return file

    def closed(self) -> None:
        """Wake `wait_all_closed` if the last file is closed."""
        if not self.by_handle:
            self._all_closed.unpark_all()

    async def wait_all_closed(self) -> None:
        """Wait until no file is open."""
        while self.by_handle:
            await self._all_closed.park()

    # --- polling --------------------------------------------------------------------------

    def polled(self, file: OpenFile, poll_handle: pyfuse3.PollHandle) -> None:
        """Notify `poll_handle`, in place of the file's last one, of the next change."""
        file.poll_handle = poll_handle
        self._polling.setdefault(file.port, set()).add(file)

    def port_changed(self, port: Port | LinesReader) -> None:
        """Notify the programs that poll the port's file, or a file of lines."""
        for file in self._polling.pop(port, ()):
            poll_handle, file.poll_handle = file.poll_handle, None
            if poll_handle is not None:
                poll_handle.notify()

    def port_added(self, port: Port) -> None:
        """Do nothing: a new port has no open file."""

    def port_removed(self, port: Port) -> None:
        """Do nothing: the port has changed before."""

    def port_renamed(self, port: Port, old: bytes) -> None:
        """Do nothing: a poll does not show the name."""

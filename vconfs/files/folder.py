"""A folder of ports: those of a guest's mount, or the host's side of those of one guest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyfuse3
from attrs import define

from vconfs.files._events_file import EventsFile
from vconfs.files._name_changes import NameChanges
from vconfs.files._tap_file import TapFile
from vconfs.files.announcer import Announcer
from vconfs.files.lines_reader import LinesReader
from vconfs.files.status import ROOT_STATUS, status_names, status_value
from vconfs.files.tree import Access, Entry, Tree
from vconfs.guest.opener import Opener
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager, PortObserver


@define(eq=False)
class Folder:
    """The ports of a manager as files. PortFS asks it by inode, and shows it as the whole mount."""

    manager: PortManager
    tree: Tree
    events: EventsFile
    _tap: TapFile
    _name_changes: NameChanges

    @classmethod
    def of(
        cls,
        manager: PortManager,
        access_for: Callable[[int], Access],
        access: Access,
        announcer: Announcer,
        number: int = 0,
    ) -> Folder:
        """Return the folder of a manager; its inodes are those of the folder with this number."""
        tree = Tree(manager, access_for, access, number)
        name_changes = NameChanges(manager, announcer, tree)
        return cls(manager, tree, EventsFile(manager), TapFile(manager.taps), name_changes)

    @contextmanager
    def following(self, files: PortObserver) -> Iterator[None]:
        """Follow the changes of the ports while the block runs; so do the open `files`."""
        observing = self.manager.observing
        with (
            observing(self.tree.cut_links),
            observing(files),
            observing(self.events),
            observing(self._name_changes),
        ):
            yield

    @property
    def opens_wait(self) -> bool:
        """Return False: here an open never has to wait for the other side."""
        return False

    @property
    def port_count(self) -> int:
        """The number of ports."""
        return len(self.manager.ports)

    def port_of(self, inode: int) -> Port | None:
        """Return the port whose file has this inode, or None."""
        return self.tree.port_of(inode)

    def open_lines(
        self, inode: int, opener: Opener, flags: int, on_change: Callable[[LinesReader], None]
    ) -> LinesReader | None:
        """Open a file of lines; return None if the inode is of none. Raise OSError."""
        if self.tree.is_events(inode):
            return self.events.open(opener, flags, on_change)
        return self._tap.open(opener, flags, on_change) if self.tree.is_tap(inode) else None

    def names(self, directory: int) -> list[Entry]:
        """List a directory."""
        return self.tree.names(directory)

    def find(self, directory: int, name: bytes) -> Entry | None:
        """Look up a name in a directory; return None if it is not there."""
        return self.tree.find(directory, name)

    def target(self, inode: int) -> bytes | None:
        """Return the target of a symlink, or None if there is no such link."""
        return self.tree.target(inode)

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        """Return all attributes of an inode."""
        return self.tree.attributes(inode)

    def status(self, inode: int, name: bytes) -> bytes | None:
        """Return an extended attribute of an inode, or None if it does not have it."""
        if inode == self.tree.root.inode and name in ROOT_STATUS:
            return ROOT_STATUS[name](self.manager)
        port = self.port_of(inode)
        return None if port is None else status_value(port, name)

    def status_names(self, inode: int) -> list[bytes]:
        """Return the names of the extended attributes that an inode has now."""
        port = self.port_of(inode)
        return [] if port is None else status_names(port)

    async def shut(self) -> None:
        """Hang up everything for good, because the mount ends."""
        await self.manager.shut()
        self.shut_lines()

    def shut_lines(self) -> None:
        """End the files of lines for all openers, because the folder goes."""
        self.events.shut()
        self._tap.shut()

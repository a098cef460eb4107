"""A mount with a folder for each guest: the host's side of all their ports.

    /            .events         the events of all guests, line by line; see `_events_file`
                 GUEST/          a folder for each guest, with the names of a guest's mount:
                                 vconN …  by-name/  .events  .tap  (see `tree`)

The folder of a guest is there as long as the host end knows the guest, connected or not, or while
there are sockets that a hypervisor made for it. Consoles have no ptys here: a port of a host end
that needs one has the chardev pty.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pyfuse3

from vconfs.files._events_file import GuestsEventsFile
from vconfs.files.announcer import Announcer, Kind
from vconfs.files.folder import Folder
from vconfs.files.lines_reader import LinesReader
from vconfs.files.names import EVENTS_FILE
from vconfs.files.status import GUEST_STATUS, GUESTS_STATUS
from vconfs.files.tree import EVENTS, ROOT_PLACE, Access, Entry, Tree, number_of
from vconfs.guest.opener import Opener
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager, PortObserver
from vconfs.mirror.guests import Guest, Guests

#: Returns who may use a guest's port, by the guest's name, the port's id and its name.
AccessFor = Callable[[str, int, bytes], Access]


class GuestFolders:
    """The folders of the guests. PortFS asks it by inode, and shows it as the whole mount."""

    def __init__(
        self, guests: Guests, access_for: AccessFor, access: Access, announcer: Announcer
    ) -> None:
        self._guests = guests
        self._access_for = access_for
        self._access = access
        self._announcer = announcer
        self._events = GuestsEventsFile(guests)
        #: The folders by their numbers, and what ends the following of each.
        self._folders: dict[int, Folder] = {}
        self._following: dict[int, ExitStack] = {}
        self._files: PortObserver | None = None
        #: What is not in the folder of a guest.
        self._top = Tree(PortManager(), lambda port_id: access, access)

    @contextmanager
    def following(self, files: PortObserver) -> Iterator[None]:
        """Follow the changes of guests and ports while the block runs; so do the open `files`."""
        self._files = files
        try:
            with self._guests.observing(self):
                yield
        finally:
            for following in self._following.values():
                following.close()

    # --- called by the guests -------------------------------------------------------------

    def guest_added(self, guest: Guest) -> None:
        """Show the folder of a guest."""
        assert self._files is not None
        folder = self._folder_of(guest)
        self._folders[guest.number] = folder
        self._announcer.created(ROOT_PLACE, guest.file_name, Kind.FOLDER)
        self._events.guest_added(guest)
        following = self._following[guest.number] = ExitStack()
        following.enter_context(folder.following(self._files))
        following.enter_context(guest.manager.observing(self._events))

    def guest_removed(self, guest: Guest) -> None:
        """Show the folder no more; its ports have gone before."""
        folder = self._folders.pop(guest.number)
        self._following.pop(guest.number).close()
        folder.shut_lines()
        self._events.guest_removed(guest)
        inode = folder.tree.root.inode
        self._announcer.removed(ROOT_PLACE, guest.file_name, inode, Kind.FOLDER)

    def guest_changed(self, guest: Guest) -> None:
        """Announce that a guest has connected, or was lost."""
        self._announcer.changed(ROOT_PLACE, guest.file_name)
        self._events.guest_changed(guest)

    def _folder_of(self, guest: Guest) -> Folder:
        def access(port_id: int) -> Access:
            port = guest.manager.ports.get(port_id)
            return self._access_for(guest.name, port_id, port.name if port else b"")

        return Folder.of(guest.manager, access, self._access, self._announcer, guest.number)

    # --- called by PortFS -----------------------------------------------------------------

    @property
    def opens_wait(self) -> bool:
        """True if opening a port may have to wait for the other side."""
        return self._guests.opens_wait

    @property
    def port_count(self) -> int:
        """The number of ports of all guests."""
        return sum(folder.port_count for folder in self._folders.values())

    def port_of(self, inode: int) -> Port | None:
        """Return the port whose file has this inode, or None."""
        folder = self._folders.get(number_of(inode))
        return None if folder is None else folder.port_of(inode)

    def open_lines(
        self, inode: int, opener: Opener, flags: int, on_change: Callable[[LinesReader], None]
    ) -> LinesReader | None:
        """Open a file of lines; return None if the inode is of none. Raise OSError."""
        if inode == EVENTS:
            return self._events.open(opener, flags, on_change)
        folder = self._folders.get(number_of(inode))
        return None if folder is None else folder.open_lines(inode, opener, flags, on_change)

    def names(self, directory: int) -> list[Entry]:
        """List a directory."""
        if directory == ROOT_PLACE.inode:
            guests = (self._entry(name) for name in sorted(self._guests.by_name))
            return [Entry(EVENTS_FILE, EVENTS), *(entry for entry in guests if entry)]
        folder = self._folders.get(number_of(directory))
        return [] if folder is None else folder.names(directory)

    def find(self, directory: int, name: bytes) -> Entry | None:
        """Look up a name in a directory; return None if it is not there."""
        if directory == ROOT_PLACE.inode:
            if name == EVENTS_FILE:
                return Entry(EVENTS_FILE, EVENTS)
            return self._entry(os.fsdecode(name))
        folder = self._folders.get(number_of(directory))
        return None if folder is None else folder.find(directory, name)

    def _entry(self, name: str) -> Entry | None:
        guest = self._guests.by_name.get(name)
        folder = None if guest is None else self._folders.get(guest.number)
        return None if folder is None else Entry(os.fsencode(name), folder.tree.root.inode)

    def target(self, inode: int) -> bytes | None:
        """Return the target of a symlink, or None if there is no such link."""
        folder = self._folders.get(number_of(inode))
        return None if folder is None else folder.target(inode)

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        """Return all attributes of an inode, also of the folder of a guest that has gone."""
        number = number_of(inode)
        if folder := self._folders.get(number):
            return folder.attributes(inode)
        if not number:
            return self._top.attributes(inode)
        gone = Tree(PortManager(), lambda port_id: self._access, self._access, number)
        return gone.attributes(inode)

    def status(self, inode: int, name: bytes) -> bytes | None:
        """Return an extended attribute of an inode, or None if it does not have it."""
        if inode == ROOT_PLACE.inode:
            return GUESTS_STATUS[name](self._guests) if name in GUESTS_STATUS else None
        if (guest := self._guest_at(inode)) is not None and name in GUEST_STATUS:
            return GUEST_STATUS[name](guest)
        folder = self._folders.get(number_of(inode))
        return None if folder is None else folder.status(inode, name)

    def status_names(self, inode: int) -> list[bytes]:
        """Return the names of the extended attributes that an inode has now."""
        if inode == ROOT_PLACE.inode:
            return list(GUESTS_STATUS)
        if (guest := self._guest_at(inode)) is not None:
            return [name for name, value in GUEST_STATUS.items() if value(guest) is not None]
        folder = self._folders.get(number_of(inode))
        return [] if folder is None else folder.status_names(inode)

    def _guest_at(self, inode: int) -> Guest | None:
        """Return the guest whose folder has this inode, or None."""
        folder = self._folders.get(number_of(inode))
        if folder is None or folder.tree.root.inode != inode:
            return None
        return self._guests.by_name.get(folder.manager.guest)

    async def shut(self) -> None:
        """Hang up everything for good, because the mount ends."""
        for folder in list(self._folders.values()):
            await folder.shut()
        self._events.shut()

"""The names in a mount: directories, files of ports, links; with their inodes and attributes.

    /            vcon0 vcon1 …   one file for each port
                 hvc0 …          symlinks to the ptys of console ports
                 by-name/        symlinks by the ports' names: NAME -> ../vconN
                 .events         the events of the ports, line by line; see `_events_file`
                 .tap            what passes through the ports, line by line; see `_tap_file`

Inodes are computed from the ports' ids, so a port that comes back has the same inode. Where a mount
has a folder with these names for each guest, the inodes of each folder begin at another number.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import pyfuse3
from attrs import field, frozen

from vconfs.files._cut_links import CutLinks
from vconfs.files.names import (
    BY_NAME_DIR,
    EVENTS_FILE,
    TAP_FILE,
    Place,
    id_of_file,
    is_pty_link,
    link_name,
    named_by,
    port_file,
)
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager

ROOT: Final = pyfuse3.ROOT_INODE
#: The inodes from here on are those of a folder whose own inode is ROOT.
_BY_NAME: Final = 2
EVENTS: Final = 3
_TAP: Final = 4
#: The inode of a port, a link by name or a link to a pty is one of these plus the port's id.
_PORTS: Final = 1 << 33
_LINKS: Final = 1 << 34
_PTYS: Final = 1 << 35

#: The inodes of each further folder begin at the next multiple of this.
_INODES: Final = 1 << 36

#: The root of the mount.
ROOT_PLACE: Final = Place(ROOT, b"")

_SYMLINK: Final = stat.S_IFLNK | 0o777
_DIRECTORY: Final = stat.S_IFDIR | 0o755


@frozen
class Access:
    """The permission bits and the owner of files."""

    mode: int = 0o600
    uid: int = field(factory=os.getuid)
    gid: int = field(factory=os.getgid)


class Entry(NamedTuple):
    """One name in a directory."""

    name: bytes
    inode: int


def pty_link(number: int, port_id: int) -> Entry:
    """Return the entry of the link `hvcN` to a port's pty, in the mount's root."""
    return Entry(b"hvc%d" % number, _PTYS + port_id)


def number_of(inode: int) -> int:
    """Return the number of the folder that an inode belongs to; 0 is the mount's root."""
    return inode // _INODES


class Tree:
    """The current contents of the folder of a manager's ports: the root, or that of a guest.

    The root has the number 0; each guest's folder has another one. Its `cut_links` observe the
    manager.
    """

    def __init__(
        self,
        manager: PortManager,
        access_for: Callable[[int], Access],
        access: Access,
        number: int = 0,
    ) -> None:
        folder = os.fsencode(manager.guest)
        self._base = number * _INODES
        #: The folder of the ports, and that of the links by name.
        self.root: Place = Place(ROOT + self._base, folder)
        self.by_name: Place = Place(_BY_NAME + self._base, os.path.join(folder, BY_NAME_DIR))
        self._manager = manager
        self._ports = manager.ports
        self._access_for = access_for
        self._access = access
        self._started = time.time_ns()
        self.cut_links: CutLinks = CutLinks()

    def port_of(self, inode: int) -> Port | None:
        """Return the port whose file has this inode, or None."""
        return self._ports.get(inode - self._base - _PORTS)

    def is_events(self, inode: int) -> bool:
        """True if this is the inode of the file of events."""
        return inode - self._base == EVENTS

    def is_tap(self, inode: int) -> bool:
        """True if this is the inode of the file of what passes through the ports."""
        return inode - self._base == _TAP

    def port_inode(self, port_id: int) -> int:
        """Return the inode of a port's file."""
        return self._base + _PORTS + port_id

    def by_name_link(self, name: bytes, port_id: int = 0) -> Entry:
        """Return the entry of the link `name` to a port's file."""
        return Entry(name, self._base + _LINKS + port_id)

    def names(self, directory: int) -> list[Entry]:
        """List a directory."""
        if directory == self.by_name.inode:
            base, names = self._base + _LINKS, self._manager.names()
            links = [Entry(link, base + at) for name, at in names if (link := link_name(name))]
            links.sort()
            return links
        return [
            *self._fixed(),
            *self._ptys(),
            *(self._file(port_id) for port_id in sorted(self._ports)),
        ]

    def find(self, directory: int, name: bytes) -> Entry | None:
        """Look up a name in a directory; return None if it is not there."""
        if directory == self.by_name.inode:
            named = named_by(name, self.cut_links.name_of)
            port = self._manager.by_name(named) if named else None
            return self.by_name_link(name, port.id) if port else None
        if (port_id := id_of_file(name)) is not None:
            return self._file(port_id) if port_id in self._ports else None
        others = self._ptys() if is_pty_link(name) else self._fixed()
        return next((entry for entry in others if entry.name == name), None)

    def target(self, inode: int) -> bytes | None:
        """Return the target of a symlink, or None if there is no such link."""
        local = inode - self._base
        if local >= _PTYS:
            port = self._ports.get(local - _PTYS)
            return None if port is None or port.hvc is None else port.pty.encode()
        port = self._ports.get(local - _LINKS)
        return None if port is None else b"../" + port_file(port.id)

    def mode(self, inode: int) -> int:
        """Return the type and permissions of an inode, also of a removed port that is open."""
        local = inode - self._base
        if local in (ROOT, _BY_NAME):
            return _DIRECTORY
        if local >= _LINKS:
            return _SYMLINK
        if local == EVENTS:
            return stat.S_IFREG | (self._access.mode & 0o444)
        if local == _TAP:
            return stat.S_IFREG | 0o600
        return stat.S_IFREG | self._access_for(local - _PORTS).mode

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        """Return all attributes of an inode."""
        mode = self.mode(inode)
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = pyfuse3.InodeT(inode)
        attributes.st_mode = pyfuse3.ModeT(mode)
        local = inode - self._base
        is_port = _PORTS <= local < _LINKS
        access = self._access_for(local - _PORTS) if is_port else self._access
        if stat.S_ISDIR(mode) or local == _TAP:
            access = Access()  # ours: our announcer creates names there; others may not tap
        attributes.st_uid, attributes.st_gid = access.uid, access.gid
        attributes.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attributes.st_blksize = 1 << 16
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = self._started
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes

    def _fixed(self) -> Iterator[Entry]:
        yield Entry(BY_NAME_DIR, self.by_name.inode)
        yield Entry(EVENTS_FILE, self._base + EVENTS)
        yield Entry(TAP_FILE, self._base + _TAP)

    def _ptys(self) -> Iterator[Entry]:
        for port in self._ports.values():
            if port.hvc is not None:
                yield pty_link(port.hvc, port.id)

    def _file(self, port_id: int) -> Entry:
        return Entry(port_file(port_id), self.port_inode(port_id))

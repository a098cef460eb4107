"""The names in a mount: directories, files of ports, links; with their inodes and attributes.

    /            vcon0 vcon1 …   one file for each port
                 hvc0 …          symlinks to the ptys of console ports
                 by-name/        symlinks by the ports' names: NAME -> ../vconN
                 .events         what happens to the ports, line by line; see `events_file`

Inodes are numbers made of the ports' ids, so that a port that comes back has the one it had.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

import pyfuse3
from attrs import field, frozen

from vconfs.names import EVENTS_FILE, link_name, port_file, port_id
from vconfs.port import Port
from vconfs.ports import PortManager

ROOT: Final = pyfuse3.ROOT_INODE
BY_NAME: Final = pyfuse3.InodeT(2)
EVENTS: Final = pyfuse3.InodeT(3)
#: Inodes of ports, of links by name and of links to ptys: this plus the port's id.
_PORTS: Final = 1 << 33
_LINKS: Final = 1 << 34
_PTYS: Final = 1 << 35

BY_NAME_DIR: Final = b"by-name"

_SYMLINK: Final = stat.S_IFLNK | 0o777
_DIRECTORY: Final = stat.S_IFDIR | 0o755


@frozen
class Access:
    """Who may use the files: permission bits and owner."""

    mode: int = 0o600
    uid: int = field(factory=os.getuid)
    gid: int = field(factory=os.getgid)


@frozen
class Entry:
    """One name in a directory."""

    name: bytes
    inode: int
    mode: int


def port_inode(id: int) -> int:
    """Give the inode of a port's file."""
    return _PORTS + id


def by_name_link(name: bytes, id: int = 0) -> Entry:
    """Describe the link of that name to a port's file."""
    return Entry(name, _LINKS + id, _SYMLINK)


def pty_link(number: int, id: int) -> Entry:
    """Describe the link `hvcN` to a port's pty."""
    return Entry(b"hvc%d" % number, _PTYS + id, _SYMLINK)


class Tree:
    """What is where in the mount of a manager's ports, as it is now."""

    def __init__(
        self, manager: PortManager, access_for: Callable[[int], Access], access: Access
    ) -> None:
        self._ports = manager.ports
        self._access_for = access_for
        self._access = access
        self._started = time.time_ns()

    def port_of(self, inode: int) -> Port | None:
        """Give the port whose file this inode is."""
        return self._ports.get(inode - _PORTS)

    def names(self, directory: int) -> list[Entry]:
        """List a directory."""
        ports = sorted(self._ports.values(), key=lambda port: port.id)
        if directory == BY_NAME:
            links = {link: port for port in reversed(ports) if (link := link_name(port.name))}
            return [by_name_link(link, port.id) for link, port in sorted(links.items())]
        return [*self._fixed(), *self._ptys(), *(self._file(port) for port in ports)]

    def find(self, directory: int, name: bytes) -> Entry | None:
        """Look a name up in a directory."""
        if directory == BY_NAME:
            ids = [id for id, port in self._ports.items() if link_name(port.name) == name]
            return by_name_link(name, min(ids)) if ids else None
        if (id := port_id(name)) is not None:
            port = self._ports.get(id)
            return None if port is None else self._file(port)
        others = [*self._fixed(), *self._ptys()]
        return next((entry for entry in others if entry.name == name), None)

    def target(self, inode: int) -> bytes | None:
        """Give what a symlink points to; None: there is no such link."""
        if inode >= _PTYS:
            port = self._ports.get(inode - _PTYS)
            return None if port is None or port.hvc is None else port.pty.encode()
        port = self._ports.get(inode - _LINKS)
        return None if port is None else b"../" + port_file(port.id)

    def mode(self, inode: int) -> int:
        """Give type and permissions of an inode, also of a port that is gone but still open."""
        if inode in (ROOT, BY_NAME):
            return _DIRECTORY
        if inode >= _LINKS:
            return _SYMLINK
        if inode == EVENTS:
            return stat.S_IFREG | (self._access.mode & 0o444)
        return stat.S_IFREG | self._access_for(inode - _PORTS).mode

    def attributes(self, inode: int, mode: int) -> pyfuse3.EntryAttributes:
        """Give all attributes of an inode with this mode."""
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = pyfuse3.InodeT(inode)
        attributes.st_mode = pyfuse3.ModeT(mode)
        is_port = _PORTS <= inode < _LINKS
        access = self._access_for(inode - _PORTS) if is_port else self._access
        if stat.S_ISDIR(mode):
            access = Access()  # ours: who announces ports there is us
        attributes.st_uid, attributes.st_gid = access.uid, access.gid
        attributes.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attributes.st_blksize = 1 << 16
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = self._started
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes

    def _fixed(self) -> Iterator[Entry]:
        yield Entry(BY_NAME_DIR, BY_NAME, _DIRECTORY)
        yield Entry(EVENTS_FILE, EVENTS, self.mode(EVENTS))

    def _ptys(self) -> Iterator[Entry]:
        for id, port in sorted(self._ports.items()):
            if port.hvc is not None:
                yield pty_link(port.hvc, id)

    def _file(self, port: Port) -> Entry:
        inode = port_inode(port.id)
        return Entry(port_file(port.id), inode, self.mode(inode))

"""PortFS: the ports of a port manager as files.

    /            vcon0 vcon1 …   one file for each port
                 hvc0 …          symlinks to the ptys of console ports
                 by-name/        symlinks by the ports' names: NAME -> ../vconN
                 .events         what happens to the ports, line by line; see `events_file`

A file's calls are those of its `Port`; this module has only what is the file system's own:
inodes, handles, attributes, and the listing of directories. Nothing here waits but `read` and
`write`, and those only in the port.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Final

import pyfuse3
import trio
from attrs import define, field, frozen
from pyfuse3 import FUSEError

from vconfs import fuse
from vconfs.announcer import Announcer
from vconfs.events_file import EVENTS_FILE, EventsFile, EventsReader
from vconfs.names import link_name, port_file, port_id
from vconfs.port import Opener, Port
from vconfs.ports import PortManager
from vconfs.protocol.events import Buffer
from vconfs.status import PID_ATTRIBUTE, status_value, status_values

ROOT: Final = pyfuse3.ROOT_INODE
BY_NAME: Final = pyfuse3.InodeT(2)
EVENTS: Final = pyfuse3.InodeT(3)
#: Inodes of ports, of links by name and of links to ptys: this plus the port's id.
_PORTS: Final = 1 << 33
_LINKS: Final = 1 << 34
_PTYS: Final = 1 << 35

BY_NAME_DIR: Final = b"by-name"


@frozen
class Access:
    """Who may use the files: permission bits and owner."""

    mode: int = 0o600
    uid: int = field(factory=os.getuid)
    gid: int = field(factory=os.getgid)


@define(eq=False)
class _Handle:
    """One open file."""

    port: Port | EventsReader
    opener: Opener
    flags: int
    poll_handle: pyfuse3.PollHandle | None = None


@frozen
class _Entry:
    """One name in a directory."""

    name: bytes
    inode: int
    mode: int
    target: bytes = b""  # of a symlink


class PortFS(pyfuse3.Operations):
    """The file system; also a listener of the manager, and `fuse.PortOperations`."""

    #: See `fuse.PortOperations.prompt`: everything is done at once but reading and writing.
    prompt = frozenset(vars(pyfuse3.Operations)) - {"read", "write"}

    def __init__(
        self,
        manager: PortManager,
        access_for: Callable[[int], Access] = lambda id: Access(),
        announcer: Announcer | None = None,
        access: Access | None = None,
    ) -> None:
        super().__init__()
        self._manager = manager
        self._access_for = access_for
        self._access = access or Access()
        self._announcer = announcer or Announcer()
        self._handles: dict[int, _Handle] = {}
        self._polling: dict[Port | EventsReader, set[_Handle]] = {}
        self._events = EventsFile(manager)
        self._listings: dict[int, list[_Entry]] = {}
        self._next_handle = 1
        self._all_closed = trio.lowlevel.ParkingLot()
        self._started = time.time_ns()
        manager.listeners.append(self)

    # --- reading, writing, polling --------------------------------------------------------

    def read_nowait(self, fh: int, size: int, flags: int) -> Sequence[Buffer]:
        """See `fuse.PortOperations`."""
        try:
            return self._handles[fh].port.read_nowait(size)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        """See `fuse.PortOperations`."""
        try:
            return self._handles[fh].port.write_nowait(data)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Wait for data; only asked when `read_nowait` would block."""
        try:
            return b"".join(await self._handles[fh].port.read(size))
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Wait until the host takes something; only asked when `write_nowait` would block."""
        try:
            return await self._handles[fh].port.write(buf)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def poll(
        self,
        inode: pyfuse3.InodeT,
        fh: pyfuse3.FileHandleT,
        poll_handle: pyfuse3.PollHandle | None,
        ctx: pyfuse3.RequestContext,
    ) -> int:
        """Give the port's poll mask; the newest handle is told of the next change."""
        handle = self._handles[fh]
        if poll_handle is not None:
            handle.poll_handle = poll_handle
            self._polling.setdefault(handle.port, set()).add(handle)
        return handle.port.poll()

    # --- open and close -------------------------------------------------------------------

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open a port; O_TRUNC and O_APPEND change nothing."""
        opener = Opener(ctx.pid)
        try:
            port = self._open(inode, flags, opener)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        fh = self._new_handle()
        self._handles[fh] = _Handle(port, opener, flags)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fh), direct_io=True, nonseekable=True)

    def _open(self, inode: int, flags: int, opener: Opener) -> Port | EventsReader:
        if inode == EVENTS:
            return self._events.open(opener, flags, self._notify)
        port = self._manager.ports.get(inode - _PORTS)
        if port is None:
            raise FUSEError(errno.ENXIO)
        port.open(opener)
        return port

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Close a port."""
        handle = self._handles.pop(fh)
        self._stop_polling(handle)
        handle.port.close(handle.opener)
        if not self._handles:
            self._all_closed.unpark_all()

    async def wait_all_closed(self) -> None:
        """Wait until nobody has a port open."""
        while self._handles:
            await self._all_closed.park()

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Do nothing: it comes at each close of a duplicate, and is no close."""

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Do nothing: what was written is on its way already."""

    # --- names and attributes -------------------------------------------------------------

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name; the announcer sees what it is about to create or remove differently."""
        entry = self._find(parent_inode, name)
        pretended = self._announcer.pretends(parent_inode == BY_NAME, name, ctx.pid)
        if pretended is not None:
            entry = _Entry(name, *pretended) if pretended else None
        if entry is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes(entry.inode, entry.mode)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Give a node's attributes, also when its port is gone but still open."""
        return self._attributes(inode, self._mode(inode))

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Accept what changes nothing; a truncation, a time, or the owner and mode that are."""
        now = self._attributes(inode, self._mode(inode))
        changes = (
            (fields.update_mode and stat.S_IMODE(attr.st_mode) != stat.S_IMODE(now.st_mode))
            or (fields.update_uid and attr.st_uid != now.st_uid)
            or (fields.update_gid and attr.st_gid != now.st_gid)
        )
        if changes:
            raise FUSEError(errno.EPERM)
        return now

    async def readlink(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileNameT:
        """Give a symlink's target."""
        for entry in [*self._names(ROOT), *self._names(BY_NAME)]:
            if entry.inode == inode and entry.target:
                return pyfuse3.FileNameT(entry.target)
        raise FUSEError(errno.ENOENT)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Give the number of ports as the number of files."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_files = len(self._manager.ports)
        data.f_namemax = 255
        return data

    async def access(
        self, inode: pyfuse3.InodeT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext
    ) -> bool:
        """Leave it to the kernel, which checks the mode bits (default_permissions)."""
        return True

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Do nothing: inodes are numbers made of ids."""

    # --- extended attributes --------------------------------------------------------------

    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        """Give the port's name, or its status; see `status`."""
        port = self._manager.ports.get(inode - _PORTS)
        value = None if port is None else status_value(port, name)
        if inode == ROOT and name == PID_ATTRIBUTE:
            value = b"%d" % os.getpid()
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        """List the attributes that the port has now."""
        port = self._manager.ports.get(inode - _PORTS)
        return [] if port is None else [pyfuse3.XAttrNameT(n) for n in status_values(port)]

    async def setxattr(
        self,
        inode: pyfuse3.InodeT,
        name: pyfuse3.XAttrNameT,
        value: bytes,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Refuse: the attributes are for reading."""
        raise FUSEError(errno.EPERM)

    async def removexattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Refuse: the attributes are for reading."""
        raise FUSEError(errno.EPERM)

    # --- directories ----------------------------------------------------------------------

    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        """Take a listing; it does not change under the reader."""
        fh = self._new_handle()
        self._listings[fh] = self._names(inode)
        return pyfuse3.FileHandleT(fh)

    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        """List the names from the `start_id`-th on."""
        for next_id, entry in enumerate(self._listings[fh][start_id:], start_id + 1):
            attributes = self._attributes(entry.inode, entry.mode)
            if not fuse.readdir_reply(token, entry.name, attributes, next_id):
                return

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """Forget a listing."""
        del self._listings[fh]

    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Do nothing."""

    # --- what only the announcer may do ---------------------------------------------------

    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Let our own announcer "create" a port that has come; others may not (EPERM)."""
        return self._announced(parent_inode, name, ctx)

    async def symlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Let our own announcer "create" a link that has come; others may not (EPERM)."""
        return self._announced(parent_inode, name, ctx)

    async def unlink(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Let our own announcer "remove" what has gone; others may not (EPERM)."""
        if not self._announcer.is_me(ctx.pid):
            raise FUSEError(errno.EPERM)

    def _announced(
        self, parent: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if not self._announcer.is_me(ctx.pid):
            raise FUSEError(errno.EPERM)
        entry = self._find(parent, name)
        if entry is None:
            raise FUSEError(errno.ENOENT)  # it has gone again meanwhile
        return self._attributes(entry.inode, entry.mode)

    # --- listening to the manager ---------------------------------------------------------

    def port_added(self, port: Port) -> None:
        """Announce the new file."""
        self._events.port_added(port)
        self._announcer.created(False, port_file(port.id))
        self._announce_link(port.name, created=True)

    def port_removed(self, port: Port) -> None:
        """Announce that the file is gone."""
        self._events.port_removed(port)
        gone = (_PORTS + port.id, self._mode(_PORTS + port.id))
        self._announcer.removed(False, port_file(port.id), gone)
        self._announce_link(port.name, created=False)

    def port_renamed(self, port: Port, old: bytes) -> None:
        """Announce the change of an attribute, and of the links."""
        self._events.port_renamed(port, old)
        self._announcer.changed(port_file(port.id))
        self._announce_link(old, created=False)
        self._announce_link(port.name, created=True)

    def port_changed(self, port: Port) -> None:
        """Notify whoever polls the port, and whoever reads of events."""
        self._notify(port)
        self._events.port_changed(port)

    def shut(self) -> None:
        """Hang everything up for good, because the mount ends."""
        self._manager.shut()
        self._events.shut()

    def _notify(self, port: Port | EventsReader) -> None:
        for handle in self._polling.pop(port, ()):
            poll_handle, handle.poll_handle = handle.poll_handle, None
            if poll_handle is not None:
                poll_handle.notify()

    def _announce_link(self, name: bytes, *, created: bool) -> None:
        link = link_name(name)
        if link is None:
            return
        there = self._manager.by_name(name)
        if created and there is not None:
            self._announcer.created(True, link)
        elif not created and there is None:
            self._announcer.removed(True, link, (_LINKS, stat.S_IFLNK | 0o777))

    # --- helpers --------------------------------------------------------------------------

    def _new_handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    def _stop_polling(self, handle: _Handle) -> None:
        handle.poll_handle = None
        polling = self._polling.get(handle.port)
        if polling is not None:
            polling.discard(handle)
            if not polling:
                del self._polling[handle.port]

    def _names(self, inode: int) -> list[_Entry]:
        ports = sorted(self._manager.ports.values(), key=lambda port: port.id)
        if inode == BY_NAME:
            links = {link: port for port in reversed(ports) if (link := link_name(port.name))}
            return [_link_entry(link, port) for link, port in sorted(links.items())]
        entries = [_Entry(BY_NAME_DIR, BY_NAME, stat.S_IFDIR | 0o755)]
        entries += [_Entry(EVENTS_FILE, EVENTS, self._mode(EVENTS))]
        entries += [_pty_entry(port.hvc, port) for port in ports if port.hvc is not None]
        return entries + [self._port_entry(port) for port in ports]

    def _find(self, parent: int, name: bytes) -> _Entry | None:
        if parent == ROOT and (id := port_id(name)) is not None:
            port = self._manager.ports.get(id)
            return None if port is None else self._port_entry(port)
        return next((entry for entry in self._names(parent) if entry.name == name), None)

    def _port_entry(self, port: Port) -> _Entry:
        inode = _PORTS + port.id
        return _Entry(port_file(port.id), inode, self._mode(inode))

    def _mode(self, inode: int) -> int:
        if inode in (ROOT, BY_NAME):
            return stat.S_IFDIR | 0o755
        if inode >= _LINKS:
            return stat.S_IFLNK | 0o777
        if inode == EVENTS:
            return stat.S_IFREG | (self._access.mode & 0o444)
        return stat.S_IFREG | self._access_for(inode - _PORTS).mode

    def _attributes(self, inode: int, mode: int) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = pyfuse3.InodeT(inode)
        attributes.st_mode = pyfuse3.ModeT(mode)
        is_port = _PORTS <= inode < _LINKS
        access = self._access_for(inode - _PORTS) if is_port else self._access
        attributes.st_uid, attributes.st_gid = access.uid, access.gid
        attributes.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attributes.st_blksize = 1 << 16
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = self._started
        attributes.entry_timeout = attributes.attr_timeout = 0
        return attributes


def _link_entry(link: bytes, port: Port) -> _Entry:
    target = b"../" + port_file(port.id)
    return _Entry(link, _LINKS + port.id, stat.S_IFLNK | 0o777, target)


def _pty_entry(number: int, port: Port) -> _Entry:
    return _Entry(b"hvc%d" % number, *pty_link(port.id), port.pty.encode())


def pty_link(id: int) -> tuple[int, int]:
    """Give inode and mode of the link to a port's pty."""
    return (_PTYS + id, stat.S_IFLNK | 0o777)


class StockPortFS(PortFS):
    """PortFS for pyfuse3.main(), which gives no flags: those of the open have to do."""

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Read, waiting unless the file was opened with O_NONBLOCK."""
        flags = self._handles[fh].flags
        try:
            return b"".join(self.read_nowait(fh, size, flags))
        except trio.WouldBlock:
            if flags & os.O_NONBLOCK:
                raise FUSEError(errno.EAGAIN) from None
        return await super().read(fh, off, size)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Write, waiting unless the file was opened with O_NONBLOCK."""
        flags = self._handles[fh].flags
        try:
            return self.write_nowait(fh, memoryview(buf), flags)
        except trio.WouldBlock:
            if flags & os.O_NONBLOCK:
                raise FUSEError(errno.EAGAIN) from None
        return await super().write(fh, off, buf)

"""PortFS: ports as files.

A file's calls are those of its `Port`. This module adds what belongs to the file system: open
files, polling, and the order of calls. What the mount contains, a `files.folder` of ports or the
`files.guest_folders`, is asked by inode. Only `read`, `write` and `open` wait, and only in the
port.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import pyfuse3
from pyfuse3 import FUSEError

from vconfs import fuse
from vconfs.files.announcer import Announcer
from vconfs.files.folder import Folder
from vconfs.files.guest_folders import GuestFolders
from vconfs.files.lines_reader import LinesReader
from vconfs.files.open_files import OpenFile, OpenFiles
from vconfs.files.tree import Entry
from vconfs.guest.idle_opens import IdleOpens
from vconfs.guest.opener import Opener
from vconfs.guest.port import Port
from vconfs.overrides import override
from vconfs.protocol.events import Buffer
from vconfs.system.processes import process_of

#: What a mount shows.
Contents: TypeAlias = Folder | GuestFolders


class PortFS(pyfuse3.Operations, fuse.PortOperations):
    """The file system. It shows changes while `following`."""

    #: Only reading and writing can wait, and opening where the other side has to be asked.
    prompt: frozenset[str] = frozenset(vars(pyfuse3.Operations)) - {"read", "write"}

    def __init__(self, contents: Contents, announcer: Announcer) -> None:
        super().__init__()
        if contents.opens_wait:
            self.prompt -= {"open"}
        self._contents = contents
        self._announcer = announcer
        self._files = OpenFiles()
        #: Its task reports ports that are open and unused to the host.
        self.idle_opens: IdleOpens = IdleOpens()
        self._listings: dict[int, list[Entry]] = {}

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the changes of the ports while the block runs."""
        with self._contents.following(self._files):
            yield

    # --- reading, writing, polling --------------------------------------------------------

    @override
    def read_nowait(self, fh: int, size: int, flags: int) -> Sequence[Buffer]:
        try:
            file = self._files.by_handle[fh]
            return file.port.take_nowait(size, file.opener)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    @override
    async def read_pieces(self, fh: int, size: int) -> Sequence[Buffer]:
        try:
            file = self._files.by_handle[fh]
            return await file.port.take(size, file.opener)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    @override
    def read_done(self, fh: int) -> None:
        self._files.by_handle[fh].port.give_back()

    @override
    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        try:
            nonblock = bool(flags & os.O_NONBLOCK)
            return self._files.by_handle[fh].port.write_nowait(data, nonblock=nonblock)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Wait for data. Our session calls `read_pieces` instead."""
        data = b"".join(await self.read_pieces(fh, size))
        self.read_done(fh)
        return data

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Wait until the host takes data; only called when `write_nowait` would block."""
        try:
            return await self._files.by_handle[fh].port.write(buf)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    async def poll(
        self,
        inode: pyfuse3.InodeT,
        fh: pyfuse3.FileHandleT,
        poll_handle: pyfuse3.PollHandle | None,
        ctx: pyfuse3.RequestContext,
    ) -> int:
        """Return the port's poll mask; the latest poll handle is notified of the next change."""
        file = self._files.by_handle[fh]
        if poll_handle is not None:
            self._files.polled(file, poll_handle)
        return file.port.answer_poll(file.opener)

    # --- open and close -------------------------------------------------------------------

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """Open a port; its host is told later. O_TRUNC and O_APPEND have no effect.

        It waits only if the other side may refuse the open, and has to be asked.
        """
        reads = flags & os.O_ACCMODE != os.O_WRONLY
        opener = Opener(*process_of(ctx.pid), can_read=reads)
        try:
            port = self._open(inode, flags, opener)
            if isinstance(port, Port) and port.confirm_open is not None:
                await self._confirm(port, opener, port.confirm_open)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        fh = self._files.add(OpenFile(port, opener, flags))
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fh), direct_io=True, nonseekable=True)

    def _open(self, inode: int, flags: int, opener: Opener) -> Port | LinesReader:
        lines = self._contents.open_lines(inode, opener, flags, self._files.port_changed)
        if lines is not None:
            return lines
        port = self._contents.port_of(inode)
        if port is None:
            raise FUSEError(errno.ENXIO)
        port.open(opener, quiet=True)
        self.idle_opens.add(port, opener)
        return port

    async def _confirm(
        self, port: Port, opener: Opener, confirm_open: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            await confirm_open()
        except BaseException:  # refused, or interrupted by a signal
            self.idle_opens.discard(opener)
            port.close(opener)
            raise

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Close a port."""
        file = self._files.remove(fh)
        self.idle_opens.discard(file.opener)
        file.port.close(file.opener)
        self._files.closed()

    async def wait_all_closed(self) -> None:
        """Wait until no file is open."""
        await self._files.wait_all_closed()

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Do nothing: it comes at each close of a duplicate, and is not the last close."""

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Do nothing: written data is already on its way."""

    # --- names and attributes -------------------------------------------------------------

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Look up a name; show the announcer the faked entry of a name that it announces."""
        entry = self._contents.find(parent_inode, name)
        pretended = self._announcer.pretends(parent_inode, name, ctx.pid)
        if pretended is not None:
            entry = Entry(name, pretended) if pretended else None
        if entry is None:
            raise FUSEError(errno.ENOENT)
        return self._contents.attributes(entry.inode)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return an inode's attributes, even if its port was removed and is still open."""
        return self._contents.attributes(inode)

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Accept a truncation, a time, or the present owner and mode, and change nothing."""
        now = self._contents.attributes(inode)
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
        """Return a symlink's target."""
        target = self._contents.target(inode)
        if target is None:
            raise FUSEError(errno.ENOENT)
        return pyfuse3.FileNameT(target)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return the number of ports as the number of files."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_files = self._contents.port_count
        data.f_namemax = 255
        return data

    async def access(
        self, inode: pyfuse3.InodeT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext
    ) -> bool:
        """Leave it to the kernel, which checks the mode bits (default_permissions)."""
        return True

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Do nothing: inodes are computed from ids."""

    # --- extended attributes --------------------------------------------------------------

    async def getxattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> bytes:
        """Return a part of the status of a port, of a guest or, at the root, of the mount."""
        value = self._contents.status(inode, name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        """List the attributes that the file or folder has now."""
        return [pyfuse3.XAttrNameT(name) for name in self._contents.status_names(inode)]

    async def setxattr(
        self,
        inode: pyfuse3.InodeT,
        name: pyfuse3.XAttrNameT,
        value: bytes,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Refuse: the attributes are read-only."""
        raise FUSEError(errno.EPERM)

    async def removexattr(
        self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Refuse: the attributes are read-only."""
        raise FUSEError(errno.EPERM)

    # --- directories ----------------------------------------------------------------------

    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        """Take a listing; it does not change under the reader."""
        fh = self._files.new_handle()
        self._listings[fh] = self._contents.names(inode)
        return pyfuse3.FileHandleT(fh)

    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        """List the names from the `start_id`-th on."""
        listing = self._listings[fh]
        for next_id in range(start_id + 1, len(listing) + 1):
            entry = listing[next_id - 1]
            attributes = self._contents.attributes(entry.inode)
            if not fuse.readdir_reply(token, entry.name, attributes, next_id):
                return

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """Forget a listing."""
        del self._listings[fh]

    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Do nothing."""

    # --- only for the announcer -----------------------------------------------------------

    async def mknod(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        rdev: int,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Let our announcer "create" the file of a new port; refuse others with EPERM."""
        return self._announced(parent_inode, name, ctx)

    async def symlink(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        target: pyfuse3.FileNameT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Let our announcer "create" a new link; refuse others with EPERM."""
        return self._announced(parent_inode, name, ctx)

    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Let our announcer "create" the folder of a new guest; refuse others with EPERM."""
        return self._announced(parent_inode, name, ctx)

    async def unlink(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Let our announcer "remove" a name that is gone; refuse others with EPERM."""
        if not self._announcer.is_me(ctx.pid):
            raise FUSEError(errno.EPERM)

    async def rmdir(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> None:
        """Let our announcer "remove" the folder of a guest that has gone, as in `unlink`."""
        await self.unlink(parent_inode, name, ctx)

    def _announced(
        self, parent: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if not self._announcer.is_me(ctx.pid):
            raise FUSEError(errno.EPERM)
        entry = self._contents.find(parent, name)
        if entry is None:
            raise FUSEError(errno.ENOENT)  # it was removed again meanwhile
        return self._contents.attributes(entry.inode)

    # --- the end --------------------------------------------------------------------------

    async def shut(self) -> None:
        """Hang up everything for good, because the mount ends."""
        await self._contents.shut()

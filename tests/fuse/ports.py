"""Echoing ports, as small as they can be: what is written to a file can be read from it."""

from __future__ import annotations

import errno
import select
import stat
from collections.abc import Callable, Sequence
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT

IN = select.POLLIN | select.POLLRDNORM
OUT = select.POLLOUT | select.POLLWRNORM


class Port:
    def __init__(self) -> None:
        self.data = bytearray()
        self.room = 64 << 20
        self.hung_up = False
        self.waiting = 0
        self.poll_handles: dict[int, Any] = {}
        self._changed = trio.lowlevel.ParkingLot()

    def progressed(self) -> None:
        """Let a test look whether what it waits for has come."""
        self._changed.unpark_all()

    def changed(self) -> None:
        self.progressed()
        for handle in self.poll_handles.values():
            handle.notify()
        self.poll_handles.clear()

    def put(self, data: bytes) -> None:
        self.data += data
        self.changed()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self._changed.park()

    async def blocked(self, count: int = 1) -> None:
        """Wait until `count` callers wait in this port."""
        await self.until(lambda: self.waiting == count)

    async def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait as one of the callers that `blocked` counts."""
        self.waiting += 1
        self.progressed()
        try:
            await self.until(condition)
        finally:
            self.waiting -= 1
            self.progressed()


class Ports(pyfuse3.Operations):
    """Files p0, p1, …; inode 100 is the first."""

    prompt = frozenset(vars(pyfuse3.Operations)) - {"read", "write"}

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.ports = [Port() for _ in range(count)]
        self._handles: dict[int, Port] = {}

    def read_nowait(self, fh: int, size: int, flags: int) -> bytes:
        port = self._handles[fh]
        if not port.data and not port.hung_up:
            raise trio.WouldBlock
        data = bytes(port.data[:size])
        del port.data[:size]
        if data:
            port.changed()
        return data

    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        port = self._handles[fh]
        if port.hung_up:
            raise FUSEError(errno.EIO)
        taken = data[: max(port.room - len(port.data), 0)]
        if not taken:
            raise trio.WouldBlock
        port.put(bytes(taken))
        return len(taken)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        port = self._handles[fh]
        while True:
            await port.wait_for(lambda: port.data or port.hung_up)
            try:
                return self.read_nowait(fh, size, 0)
            except trio.WouldBlock:
                continue  # another reader was faster

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        port = self._handles[fh]
        await port.wait_for(lambda: port.room > len(port.data))
        return self.write_nowait(fh, memoryview(buf), 0)

    async def poll(self, inode: InodeT, fh: FileHandleT, poll_handle: Any, ctx: Any) -> int:
        port = self._handles[fh]
        if poll_handle is not None:
            port.poll_handles[fh] = poll_handle
            port.progressed()
        mask = (IN if port.data else 0) | (OUT if port.room > len(port.data) else 0)
        return mask | (select.POLLHUP | IN if port.hung_up else 0)

    async def open(self, inode: InodeT, flags: int, ctx: Any) -> FileInfo:
        fh = FileHandleT(max(self._handles, default=0) + 1)
        self._handles[fh] = self.ports[inode - 100]
        self.ports[inode - 100].changed()
        return FileInfo(fh=fh, direct_io=True, nonseekable=True)

    async def release(self, fh: FileHandleT) -> None:
        port = self._handles.pop(fh)
        port.poll_handles.pop(fh, None)
        port.changed()

    async def flush(self, fh: FileHandleT) -> None:
        pass

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: Any) -> EntryAttributes:
        if not (name[:1] == b"p" and name[1:].isdigit() and int(name[1:]) < len(self.ports)):
            raise FUSEError(errno.ENOENT)
        return await self.getattr(InodeT(100 + int(name[1:])), ctx)

    async def getattr(self, inode: InodeT, ctx: Any) -> EntryAttributes:
        attr = EntryAttributes()
        attr.st_ino = inode
        attr.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o666 if inode > 1 else stat.S_IFDIR | 0o755)
        return attr

    async def setattr(
        self, inode: InodeT, attr: Any, fields: Any, fh: Any, ctx: Any
    ) -> EntryAttributes:
        return await self.getattr(inode, ctx)

    async def opendir(self, inode: InodeT, ctx: Any) -> FileHandleT:
        return FileHandleT(0)

    async def readdir(self, fh: FileHandleT, start_id: int, token: Any) -> None:
        for number in range(start_id, len(self.ports)):
            attr = await self.getattr(InodeT(100 + number), None)
            if not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(b"p%d" % number), attr, number + 1
            ):
                return

    async def getxattr(self, inode: InodeT, name: bytes, ctx: Any) -> bytes:
        if name != b"name":
            raise FUSEError(errno.ENODATA)
        return b"org.example.%d" % inode

    async def listxattr(self, inode: InodeT, ctx: Any) -> Sequence[bytes]:
        return [b"name", b"user.name"]

"""An ordinary file system in memory, in the manner of pyfuse3's examples.

`python -m tests.fuse.tree SERVER DIR` serves it by `session` (ours) or `pyfuse3` (pyfuse3.main):
it knows nothing of either. It says "ready" when mounted and ends when unmounted.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pyfuse3
import trio
from attrs import define, field
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT

from vconfs import fuse

#: The time of everything whose time is not set: two servers must show the same.
THEN = 1_600_000_000_123_456_789


@define(eq=False)
class Node:
    inode: int
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    nlink: int = 1
    times: list[int] = field(factory=lambda: [THEN] * 3)
    data: bytearray = field(factory=bytearray)
    target: bytes = b""
    children: dict[bytes, Node] = field(factory=dict)
    xattrs: dict[bytes, bytes] = field(factory=dict)
    looked_up: int = 0


class Tree(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self._nodes: dict[int, Node] = {}
        self._root = self._new(stat.S_IFDIR | 0o755)
        self._errors: list[str] = []
        many = self._add(self._root, b"many", stat.S_IFDIR | 0o755)
        for number in range(500):
            self._add(many, b"entry-with-a-longish-name-%d" % number, stat.S_IFREG | 0o644)
        readme = self._add(self._root, b"readme", stat.S_IFREG | 0o640, uid=7, gid=8)
        readme.data += b"some words\n" * 1000
        readme.xattrs.update({b"user.colour": b"green", b"user.empty": b"", b"name": b"plain"})
        self._add(self._root, b"link", stat.S_IFLNK | 0o777).target = b"../some/where \xff"
        self._add(self._root, b"broken", stat.S_IFREG | 0o644)

    def _new(self, mode: int, **more: Any) -> Node:
        node = Node(len(self._nodes) + 1, mode, **more)
        self._nodes[node.inode] = node
        return node

    def _add(self, parent: Node, name: bytes, mode: int, **more: int) -> Node:
        if name in parent.children:
            raise FUSEError(errno.EEXIST)
        node = parent.children[name] = self._new(mode, **more)
        return node

    def _child(self, parent: int, name: bytes) -> Node:
        try:
            return self._nodes[parent].children[name]
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    def _entry(self, node: Node, *, looked_up: bool = True) -> EntryAttributes:
        node.looked_up += looked_up
        attr = EntryAttributes()
        attr.st_ino = InodeT(node.inode)
        attr.generation = 3
        attr.entry_timeout, attr.attr_timeout = 0.25, 1e30
        attr.st_mode = pyfuse3.ModeT(node.mode)
        attr.st_nlink, attr.st_rdev = node.nlink, node.rdev
        attr.st_uid, attr.st_gid = node.uid, node.gid
        attr.st_size = len(node.data) or len(node.target)
        attr.st_blksize, attr.st_blocks = 512, (attr.st_size + 511) // 512
        attr.st_atime_ns, attr.st_mtime_ns, attr.st_ctime_ns = node.times
        return attr

    # --- names ----------------------------------------------------------------------------

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: Any) -> EntryAttributes:
        return self._entry(self._child(parent_inode, name))

    async def forget(self, inode_list: Any) -> None:
        for inode, count in inode_list:
            node = self._nodes[inode]
            node.looked_up -= count
            if node.looked_up < 0 and inode != pyfuse3.ROOT_INODE:
                self._errors.append(f"{inode} forgotten {-node.looked_up} times too often")

    async def mknod(
        self, parent_inode: InodeT, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> EntryAttributes:
        parent = self._nodes[parent_inode]
        return self._entry(self._add(parent, name, mode, uid=ctx.uid, gid=ctx.gid, rdev=rdev))

    async def mkdir(self, parent_inode: InodeT, name: bytes, mode: int, ctx: Any) -> Any:
        entry = await self.mknod(parent_inode, name, mode, 0, ctx)
        self._nodes[entry.st_ino].xattrs[b"user.umask"] = b"%o" % ctx.umask
        return entry

    async def symlink(self, parent_inode: InodeT, name: bytes, target: bytes, ctx: Any) -> Any:
        node = self._add(self._nodes[parent_inode], name, stat.S_IFLNK | 0o777)
        node.target = target
        return self._entry(node)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: bytes, ctx: Any
    ) -> EntryAttributes:
        node = self._nodes[inode]
        self._nodes[new_parent_inode].children[new_name] = node
        node.nlink += 1
        return self._entry(node)

    async def unlink(self, parent_inode: InodeT, name: bytes, ctx: Any) -> None:
        node = self._child(parent_inode, name)
        del self._nodes[parent_inode].children[name]
        node.nlink -= 1

    async def rmdir(self, parent_inode: InodeT, name: bytes, ctx: Any) -> None:
        if self._child(parent_inode, name).children:
            raise FUSEError(errno.ENOTEMPTY)
        del self._nodes[parent_inode].children[name]

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: bytes,
        parent_inode_new: InodeT,
        name_new: bytes,
        flags: int,
        ctx: Any,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        node = self._child(parent_inode_old, name_old)
        del self._nodes[parent_inode_old].children[name_old]
        self._nodes[parent_inode_new].children[name_new] = node

    async def readlink(self, inode: InodeT, ctx: Any) -> bytes:
        return self._nodes[inode].target

    # --- attributes -----------------------------------------------------------------------

    async def getattr(self, inode: InodeT, ctx: Any) -> EntryAttributes:
        return self._entry(self._nodes[inode], looked_up=False)

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: Any, fh: Any, ctx: Any
    ) -> EntryAttributes:
        node = self._nodes[inode]
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_size:
            node.data[:] = node.data[: attr.st_size].ljust(attr.st_size, b"\0")
        if fields.update_atime:
            node.times[0] = attr.st_atime_ns
        if fields.update_mtime:
            node.times[1] = attr.st_mtime_ns
        node.xattrs[b"user.setattr"] = b"with handle" if fh is not None else b"without"
        return self._entry(node, looked_up=False)

    async def access(self, inode: InodeT, mode: int, ctx: Any) -> bool:
        return True

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize, data.f_frsize, data.f_blocks, data.f_bfree = 4096, 512, 1 << 40, 1000
        data.f_bavail, data.f_files, data.f_ffree, data.f_namemax = 900, 700, 600, 100
        return data

    async def getxattr(self, inode: InodeT, name: bytes, ctx: Any) -> bytes:
        if name == b"user.errors":
            return b"; ".join(map(str.encode, self._errors)) or b"none"
        if name == b"user.caller":
            return b"%d %d" % (ctx.uid, ctx.gid)
        try:
            return self._nodes[inode].xattrs[name]
        except KeyError:
            raise FUSEError(pyfuse3.ENOATTR) from None

    async def listxattr(self, inode: InodeT, ctx: Any) -> Any:
        return list(self._nodes[inode].xattrs)

    async def setxattr(self, inode: InodeT, name: bytes, value: bytes, ctx: Any) -> None:
        self._nodes[inode].xattrs[name] = value

    async def removexattr(self, inode: InodeT, name: bytes, ctx: Any) -> None:
        if self._nodes[inode].xattrs.pop(name, None) is None:
            raise FUSEError(pyfuse3.ENOATTR)

    # --- files ----------------------------------------------------------------------------

    async def open(self, inode: InodeT, flags: int, ctx: Any) -> FileInfo:
        if self._nodes[inode] is self._root.children.get(b"broken"):
            raise FUSEError(errno.ENXIO)
        if flags & os.O_TRUNC:
            self._nodes[inode].data.clear()
        return FileInfo(fh=FileHandleT(inode))

    async def create(
        self, parent_inode: InodeT, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[FileInfo, EntryAttributes]:
        entry = await self.mknod(parent_inode, name, mode, 0, ctx)
        return FileInfo(fh=FileHandleT(entry.st_ino)), entry

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return bytes(self._nodes[fh].data[off : off + size])

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        await trio.lowlevel.checkpoint()
        data = self._nodes[fh].data
        data.extend(bytes(max(off - len(data), 0)))
        data[off : off + len(buf)] = buf
        return len(buf)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        self._nodes[fh].xattrs[b"user.synced"] = b"data" if datasync else b"all"

    async def flush(self, fh: FileHandleT) -> None:
        pass

    async def release(self, fh: FileHandleT) -> None:
        pass

    # --- directories ----------------------------------------------------------------------

    async def opendir(self, inode: InodeT, ctx: Any) -> FileHandleT:
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: Any) -> None:
        for number, (name, node) in enumerate(self._nodes[fh].children.items()):
            if number < start_id:
                continue
            attr = self._entry(node, looked_up=False)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attr, number + 1):
                return
            node.looked_up += 1

    async def releasedir(self, fh: FileHandleT) -> None:
        pass

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        self._nodes[fh].xattrs[b"user.synced"] = b"data" if datasync else b"all"


async def serve(mountpoint: Path) -> None:
    mount = fuse.mount(mountpoint)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(fuse.Session(Tree(), mount.device).run)
            print("ready", flush=True)
    finally:
        mount.close()


async def serve_by_pyfuse3(mountpoint: Path) -> None:
    pyfuse3.init(Tree(), str(mountpoint), set(pyfuse3.default_options))
    try:
        print("ready", flush=True)
        await pyfuse3.main()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    served_by = {"session": serve, "pyfuse3": serve_by_pyfuse3}[sys.argv[1]]
    trio.run(served_by, Path(sys.argv[2]))

"""The null device of `null_libfuse.c` in Python: `python -m benchmarks.null_fs SERVER DIR`.

Its files are "null" and "echo". SERVER is `session` (ours) or `pyfuse3` (pyfuse3.main).
It prints "ready" when mounted, and ends when unmounted.
"""

from __future__ import annotations

import errno
import stat
import sys
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, RequestContext

from vconfs import fuse

NULL, ECHO = InodeT(2), InodeT(3)
FILES = {b"null": NULL, b"echo": ECHO}
ZEROS = memoryview(bytes(1 << 20))


class NullFS(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self._kept = b""

    async def lookup(
        self, parent_inode: InodeT, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        if name not in FILES:
            raise FUSEError(errno.ENOENT)
        return await self.getattr(FILES[name], ctx)

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        attr = EntryAttributes()
        attr.st_ino = inode
        attr.st_mode = stat.S_IFREG | 0o600 if inode in FILES.values() else stat.S_IFDIR | 0o755
        return attr

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=FileHandleT(inode), direct_io=True, nonseekable=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self._kept[:size] if fh == ECHO else bytes(ZEROS[:size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        if fh == ECHO:
            self._kept = bytes(buf)
        return len(buf)


class NullPort(NullFS):
    """The same file system for our session, with calls that need no task."""

    prompt = frozenset({"lookup", "getattr", "open"})

    def read_nowait(self, fh: int, size: int, flags: int) -> bytes | memoryview:
        return self._kept[:size] if fh == ECHO else ZEROS[:size]

    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        if fh == ECHO:
            self._kept = bytes(data)
        return len(data)


async def serve(mountpoint: Path) -> None:
    mount = fuse.mount(mountpoint)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(fuse.Session(NullPort(), mount.device).run)
            print("ready", flush=True)
    finally:
        mount.close()


async def serve_by_pyfuse3(mountpoint: Path) -> None:
    options = {*pyfuse3.default_options, "default_permissions"}
    pyfuse3.init(NullFS(), str(mountpoint), options)
    try:
        print("ready", flush=True)
        await pyfuse3.main()
    finally:
        pyfuse3.close(unmount=True)


SERVERS = {"session": serve, "pyfuse3": serve_by_pyfuse3}

if __name__ == "__main__":
    trio.run(SERVERS[sys.argv[1]], Path(sys.argv[2]))

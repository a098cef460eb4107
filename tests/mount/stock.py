"""`vconfs`, but its mounts are served by pyfuse3.main(): `python -m tests.mount.stock mount …`.

It is what `vconfs.fuse.Session` is compared with. With it, signals do not end a read.
"""

from __future__ import annotations

import errno
import os

import pyfuse3
import trio
from pyfuse3 import FUSEError

from vconfs import fuse, mounting
from vconfs.__main__ import main
from vconfs.fs import PortFS


class StockPortFS(PortFS):
    """PortFS for pyfuse3.main(), which does not pass flags: it uses those of the open."""

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        flags = self._files.by_handle[fh].flags
        try:
            return b"".join(self.read_nowait(fh, size, flags))
        except trio.WouldBlock:
            if flags & os.O_NONBLOCK:
                raise FUSEError(errno.EAGAIN) from None
        return await super().read(fh, off, size)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        flags = self._files.by_handle[fh].flags
        try:
            return self.write_nowait(fh, memoryview(buf), flags)
        except trio.WouldBlock:
            if flags & os.O_NONBLOCK:
                raise FUSEError(errno.EAGAIN) from None
        return await super().write(fh, off, buf)


class StockSession:
    """A server of a mount, like `vconfs.fuse.Session`."""

    def __init__(self, operations: pyfuse3.Operations, device: int) -> None:
        self._operations = operations
        self._device = device

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        os.set_blocking(self._device, True)
        pyfuse3.init(self._operations, f"/dev/fd/{os.dup(self._device)}")
        try:
            task_status.started()
            await pyfuse3.main()
        finally:
            pyfuse3.close(unmount=False)

    async def settle(self) -> None:
        await trio.sleep(0)


if __name__ == "__main__":
    mounting.PortFS = StockPortFS  # type: ignore[attr-defined]
    fuse.Session = StockSession  # type: ignore[misc,assignment]
    main()

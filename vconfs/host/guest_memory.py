"""A guest's memory, which its front-end shares with us as parts of files.

What was mapped must never be missing when it is touched: that would end this process (SIGBUS).
So a region that is not all in its file is refused, and the file is sealed against shrinking where
that is possible: a memfd that allows it, which is what QEMU and vconfs share. What remains is a
front-end that shares another file (user-mode Linux does, QEMU's memory-backend-file too) and cuts
it off later: who may open the listening socket is trusted not to do that. A guest cannot do it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import Region
from vconfs.protocol.virtqueue import GuestMemory


class SharedMemory:
    """The regions that are shared now. A mapping goes with the last view of it.

    Methods close the descriptors that they are given. RemoteProtocolError: a region cannot be had.
    """

    def __init__(self) -> None:
        self._views: dict[Region, memoryview] = {}

    @property
    def guest(self) -> GuestMemory:
        """The memory as descriptors of the guest address it."""
        return GuestMemory((region.guest_addr, view) for region, view in self._views.items())

    def replace(self, regions: Sequence[Region], fds: Sequence[int]) -> None:
        """Have these regions, and no others."""
        self.clear()
        try:
            for region, fd in zip(regions, fds, strict=True):
                self._views[region] = _map(region, fd)
        finally:
            for fd in fds:
                os.close(fd)

    def clear(self) -> None:
        """Have no regions."""
        self._views.clear()

    def add(self, region: Region, fd: int) -> None:
        """Have one more region."""
        try:
            self._views[region] = _map(region, fd)
        finally:
            os.close(fd)

    def remove(self, region: Region) -> None:
        """Have a region no more."""
        self._views = {r: view for r, view in self._views.items() if not r.is_same(region)}


def _map(region: Region, fd: int) -> memoryview:
    where = f"the region at guest {region.guest_addr:#x}"
    end = region.mmap_offset + region.size
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise RemoteProtocolError(f"{where} is in no file")
    if end > status.st_size:
        raise RemoteProtocolError(f"{where} ends at {end:#x} of a file of {status.st_size:#x}")
    start = region.mmap_offset // mmap.PAGESIZE * mmap.PAGESIZE
    try:
        mapping = mmap.mmap(fd, end - start, offset=start)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RemoteProtocolError(f"{where} cannot be mapped: {why}") from None
    return memoryview(mapping)[region.mmap_offset - start :]

"""A guest's memory, which its front-end shares with us as parts of files.

Mapped memory must never be missing when we access it, and an access must never block. So:

- The file must be in memory: a memfd, or a file on tmpfs or hugetlbfs. Another file system may not
  answer (FUSE, a network file system). Asking for the file's seals tells which it is, without
  asking the file system.
- A region that is not completely in its file is refused, and the file is sealed against shrinking
  if possible: that is a memfd that allows it, as QEMU and vconfs share. With `require_seals` any
  other file is refused.
- The peer can keep the file locked during this, so a thread does all this, and has limited time.

Without `require_seals` one risk remains: a front-end can share a file that cannot be sealed
(user-mode Linux does, and so does QEMU's memory-backend-file) and truncate it later; then our next
access ends this process by SIGBUS. Checking the size before an access does not help, because the
file can be truncated between the two. A guest cannot do that; a program that may open the
listening socket can, and is trusted not to.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import Region
from vconfs.protocol.virtqueue import GuestMemory
from vconfs.system.aside import ASIDE, close_descriptors, seals_of

#: Seconds that mapping a region may take.
_PATIENCE: Final = 5.0
#: How many threads map at a time; threads for front-ends that have left may still be waiting.
_THREADS: Final = 8
#: The last unmapping frees memory, half a second per GiB; from this size on a thread does it.
_LARGE: Final = 16 << 20


class SharedMemory:
    """The regions that are shared now. A mapping goes away with the last view of it.

    Methods close the descriptors that they are given, and raise RemoteProtocolError if a region
    cannot be used.
    """

    def __init__(self, *, require_seals: bool = False) -> None:
        self._views: dict[Region, memoryview] = {}
        self._require_seals = require_seals

    @property
    def guest(self) -> GuestMemory:
        """The memory by guest addresses, as ring descriptors use them."""
        return GuestMemory((region.guest_addr, view) for region, view in self._views.items())

    async def replace(self, regions: Sequence[Region], fds: Sequence[int]) -> None:
        """Use these regions, and no others."""
        self.clear()
        try:
            for region, fd in zip(regions, fds, strict=True):
                self._views[region] = await _Mapper(region, fd, self._require_seals).map()
        finally:
            close_descriptors(fds)

    def clear(self) -> None:
        """Drop all regions."""
        views, self._views = list(self._views.values()), {}
        _drop(views)

    async def add(self, region: Region, fd: int) -> None:
        """Use one more region."""
        try:
            self._views[region] = await _Mapper(region, fd, self._require_seals).map()
        finally:
            close_descriptors([fd])

    def remove(self, region: Region) -> None:
        """Drop a region."""
        same = [known for known in self._views if known.is_same(region)]
        _drop([self._views.pop(known) for known in same])


def _drop(views: list[memoryview]) -> None:
    if sum(len(view) for view in views) >= _LARGE:
        ASIDE.call(views.clear)


_threads = trio.CapacityLimiter(_THREADS)


class _Mapper:
    """Maps a region of a file, through its own duplicate of the file's descriptor."""

    def __init__(self, region: Region, fd: int, require_seals: bool) -> None:
        self._region = region
        self._where = f"the region at guest {region.guest_addr:#x}"
        self._require_seals = require_seals
        if seals_of(fd) is None:
            raise RemoteProtocolError(
                f"{self._where} is not in a file in memory: share a memfd, or a file on tmpfs"
                " or hugetlbfs"
            )
        self._fd = os.dup(fd)
        self._begun = False
        self._views: list[memoryview] = []

    async def map(self) -> memoryview:
        """Map the region; raise RemoteProtocolError if that is not possible or takes too long."""
        try:
            with trio.fail_after(_PATIENCE):
                await trio.to_thread.run_sync(self._map, abandon_on_cancel=True, limiter=_threads)
            return self._views.pop()  # a result of the thread would be kept alive for longer
        except trio.TooSlowError:
            raise RemoteProtocolError(f"{self._where} is kept locked") from None
        finally:
            if not self._begun:
                os.close(self._fd)

    def _map(self) -> None:
        self._begun = True
        try:
            self._seal()
            self._views.append(self._mapped())
        except OSError as error:
            raise RemoteProtocolError(f"{self._where} cannot be mapped: {error.strerror}") from None
        finally:
            os.close(self._fd)

    def _seal(self) -> None:
        if not (seals_of(self._fd) or 0) & fcntl.F_SEAL_SHRINK:
            with suppress(OSError):
                fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        if self._require_seals and not (seals_of(self._fd) or 0) & fcntl.F_SEAL_SHRINK:
            raise RemoteProtocolError(f"{self._where} is in a file that can shrink (require-seals)")

    def _mapped(self) -> memoryview:
        region = self._region
        end = region.mmap_offset + region.size
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise RemoteProtocolError(f"{self._where} is not in a file")
        if end > status.st_size:
            raise RemoteProtocolError(
                f"{self._where} ends at {end:#x} of a file of {status.st_size:#x}"
            )
        start = region.mmap_offset // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            mapping = mmap.mmap(self._fd, end - start, offset=start)
        except (ValueError, OverflowError) as error:  # it has just shrunk, or is too large
            raise RemoteProtocolError(f"{self._where} cannot be mapped: {error}") from None
        return memoryview(mapping)[region.mmap_offset - start :]

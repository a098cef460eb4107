"""A guest's memory, which its front-end shares with us as parts of files.

What was mapped must never be missing when it is touched, and touching it must never wait. So:

- The file is one in memory: a memfd, or on tmpfs or hugetlbfs. Others have a file system that may
  not answer (FUSE, a network's). The kernel tells by the file's seals, without asking it.
- A region that is not all in its file is refused, and the file is sealed against shrinking where
  that is possible: a memfd that allows it, which is what QEMU and vconfs share. With
  `require_seals` any other is refused.
- The peer can keep the file locked meanwhile, so a thread does all this, and has limited time.

What remains without `require_seals` is a front-end that shares a file which cannot be sealed
(user-mode Linux does, QEMU's memory-backend-file too) and cuts it off later: our next access ends
this process by SIGBUS. No look at the size before an access can help, for the cut can come between
the two. A guest cannot do it: who may open the listening socket is trusted not to.
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
#: Threads that map at a time; those of front-ends that have left may still wait.
_THREADS: Final = 8
#: What is unmapped last is freed, which takes half a second per GiB: from this size on, aside.
_LARGE: Final = 16 << 20


class SharedMemory:
    """The regions that are shared now. A mapping goes with the last view of it.

    Methods close the descriptors that they are given. RemoteProtocolError: a region cannot be had.
    """

    def __init__(self, *, require_seals: bool = False) -> None:
        self._views: dict[Region, memoryview] = {}
        self._require_seals = require_seals

    @property
    def guest(self) -> GuestMemory:
        """The memory as descriptors of the guest address it."""
        return GuestMemory((region.guest_addr, view) for region, view in self._views.items())

    async def replace(self, regions: Sequence[Region], fds: Sequence[int]) -> None:
        """Have these regions, and no others."""
        self.clear()
        try:
            for region, fd in zip(regions, fds, strict=True):
                self._views[region] = await _Mapper(region, fd, self._require_seals).map()
        finally:
            close_descriptors(fds)

    def clear(self) -> None:
        """Have no regions."""
        views, self._views = list(self._views.values()), {}
        _drop(views)

    async def add(self, region: Region, fd: int) -> None:
        """Have one more region."""
        try:
            self._views[region] = await _Mapper(region, fd, self._require_seals).map()
        finally:
            close_descriptors([fd])

    def remove(self, region: Region) -> None:
        """Have a region no more."""
        same = [known for known in self._views if known.is_same(region)]
        _drop([self._views.pop(known) for known in same])


def _drop(views: list[memoryview]) -> None:
    if sum(len(view) for view in views) >= _LARGE:
        ASIDE.call(views.clear)


_threads = trio.CapacityLimiter(_THREADS)


class _Mapper:
    """Maps a region of a file, of which it has a descriptor of its own."""

    def __init__(self, region: Region, fd: int, require_seals: bool) -> None:
        self._region = region
        self._where = f"the region at guest {region.guest_addr:#x}"
        self._require_seals = require_seals
        if seals_of(fd) is None:
            raise RemoteProtocolError(
                f"{self._where} is in no file in memory: share a memfd, or a file on tmpfs"
                " or hugetlbfs"
            )
        self._fd = os.dup(fd)
        self._begun = False
        self._views: list[memoryview] = []

    async def map(self) -> memoryview:
        """Map it; RemoteProtocolError: that is not possible, or takes too long."""
        try:
            with trio.fail_after(_PATIENCE):
                await trio.to_thread.run_sync(self._map, abandon_on_cancel=True, limiter=_threads)
            return self._views.pop()  # the thread would keep a result for longer
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
            raise RemoteProtocolError(f"{self._where} is in no file")
        if end > status.st_size:
            raise RemoteProtocolError(
                f"{self._where} ends at {end:#x} of a file of {status.st_size:#x}"
            )
        start = region.mmap_offset // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            mapping = mmap.mmap(self._fd, end - start, offset=start)
        except (ValueError, OverflowError) as error:  # it has shrunk meanwhile, or is too large
            raise RemoteProtocolError(f"{self._where} cannot be mapped: {error}") from None
        return memoryview(mapping)[region.mmap_offset - start :]

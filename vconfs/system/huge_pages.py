"""Memory whose physical addresses are known and stay: a file of huge pages, in a hugetlbfs.

A device that no IOMMU translates for uses physical addresses. They come from /proc/self/pagemap,
and must be right for as long as the device can use them:

- A huge page is never swapped or split.
- When a process ends, also by SIGKILL, the kernel frees its memory before it closes its files, and
  one of them is the device. So the pages belong to a file with a name, which outlives the process.
  `remove` is called when the device is closed. After a crash, that is before the next use.
- Locked pages can still be moved: mlock(2) and MAP_LOCKED only keep them in memory. The kernel
  moves huge pages when memory is taken offline or has errors, for contiguous memory (CMA), and for
  move_pages(2) and cpusets. It does not move a page that has a reference that it cannot explain.
  So a pipe has a reference to each page, by vmsplice(2). That is how Linux works, and nothing
  that it promises. A page with an error that cannot be corrected goes all the same.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from attrs import frozen

from vconfs.errors import VconfsError
from vconfs.system.descriptors import owned
from vconfs.system.mountinfo import read_mounts

#: Commands for root that provide huge pages of 2 MiB, 64 MiB in all, and a file system for them.
PAGES_COMMAND: Final = "echo 32 >/proc/sys/vm/nr_hugepages"
MOUNT_COMMAND: Final = "mkdir -p /dev/hugepages; mount -t hugetlbfs none /dev/hugepages"

HUGETLBFS: Final = "hugetlbfs"

_PAGEMAP: Final = Path("/proc/self/pagemap")
#: An entry of pagemap: whether the page is in memory, and its number.
_ENTRY: Final = struct.Struct("=Q")
_PRESENT: Final = 1 << 63
_NUMBER_MASK: Final = (1 << 55) - 1
_SPLICE_NONBLOCK: Final = 2

_MAP_FIXED: Final = 16

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class _Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))


@frozen
class HugePages:
    """Memory, the size of its pages, and the physical address of each."""

    view: memoryview
    page_size: int
    addresses: Sequence[int]


def find_place(name: str) -> Path:
    """Return the path for a file of huge pages. Raise VconfsError if no hugetlbfs is mounted.

    Of several, the one with the smallest pages is used.
    """
    places = find_places(name)
    if not places:
        raise VconfsError(f"no hugetlbfs is mounted, for huge pages; as root: {MOUNT_COMMAND}")
    return min(places, key=_page_size)


def find_places(name: str) -> list[Path]:
    """Return the paths of that name in each hugetlbfs."""
    places = {found.place for found in read_mounts() if found.type == HUGETLBFS}
    return [Path(os.fsdecode(place)) / name for place in sorted(places)]


def _page_size(path: Path) -> int:
    return os.statvfs(path.parent).f_bsize


def remove(path: Path) -> None:
    """Remove the file if there is one, so that its pages are free when they are unmapped."""
    with suppress(OSError):
        path.unlink()


def allocate(path: Path, most: int, stack: ExitStack) -> HugePages:
    """Make the file, with as many huge pages as there are, up to `most` bytes, and map it.

    A file that is there already is replaced. The pages stay until the stack is closed.
    Raise VconfsError if there are none, or the kernel does not tell where they are.
    """
    remove(path)
    try:
        page_size = _page_size(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with ExitStack() as opened:
            descriptor = opened.enter_context(owned(os.open(path, flags, 0o600)))
            stack.callback(remove, path)
            size = _fill(descriptor, page_size, max(page_size, most))
            if not size:
                raise VconfsError(f"no huge page is free; as root: {PAGES_COMMAND}")
            view = _map(descriptor, size, page_size, stack)
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        starts = range(start, start + size, page_size)
        for at in range(0, size, page_size):
            view[at] = 0  # has the page mapped
        _pin(starts, stack)
        return HugePages(view, page_size, _find_physical(starts))
    except OSError as error:
        raise VconfsError(f"cannot allocate huge pages in {path}: {error.strerror}") from None


def _fill(descriptor: int, page_size: int, most: int) -> int:
    """Allocate as many pages as there are, up to `most` bytes. Return the bytes."""
    size = 0
    try:
        while size < most:
            os.posix_fallocate(descriptor, size, page_size)
            size += page_size
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise
    return size


def _map(descriptor: int, size: int, page_size: int, stack: ExitStack) -> memoryview:
    """Map a file of huge pages until the stack is closed.

    From then on, code that still has the view sees empty memory, and the pages can be freed.
    """
    space = mmap.mmap(-1, size + page_size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = memoryview(space)
    start = ctypes.addressof(ctypes.c_char.from_buffer(space))
    skipped = -start % page_size
    _map_at(start + skipped, size, mmap.MAP_SHARED, descriptor)
    empty = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    stack.callback(_map_at, start + skipped, size, empty, -1)
    return view[skipped : skipped + size]


def _map_at(start: int, size: int, flags: int, descriptor: int) -> None:
    """Replace what is mapped there."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if _mmap(start, size, access, flags | _MAP_FIXED, descriptor, 0) != start:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap: {os.strerror(code)}")


def _pin(starts: Sequence[int], stack: ExitStack) -> None:
    """Have a pipe refer to the pages that start there, until the stack is closed."""
    _, writer = (stack.enter_context(owned(end)) for end in os.pipe2(os.O_CLOEXEC))
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, len(starts) * mmap.PAGESIZE)
    parts = (_Part * len(starts))(*(_Part(start, 1) for start in starts))
    pinned = _libc.vmsplice(writer, parts, ctypes.c_ulong(len(starts)), _SPLICE_NONBLOCK)
    if pinned != len(starts):
        code = ctypes.get_errno() if pinned < 0 else errno.EAGAIN
        raise OSError(code, f"vmsplice: {os.strerror(code)}")


def _find_physical(addresses: Sequence[int]) -> list[int]:
    """Return the physical addresses of the pages that we have at these addresses."""
    found = []
    with _PAGEMAP.open("rb", buffering=0) as file:
        for address in addresses:
            file.seek(address // mmap.PAGESIZE * _ENTRY.size)
            found.append(parse_entry(file.read(_ENTRY.size)))
    return found


def parse_entry(entry: bytes) -> int:
    """Return the physical address in an entry of pagemap. Raise VconfsError if it has none."""
    value = _ENTRY.unpack(entry)[0] if len(entry) == _ENTRY.size else 0
    if not value & _PRESENT:
        raise VconfsError("a huge page is not in memory, says /proc/self/pagemap")
    if not value & _NUMBER_MASK:
        raise VconfsError(
            "the kernel hides physical addresses in /proc/self/pagemap: only root can see them,"
            " with CAP_SYS_ADMIN"
        )
    return (value & _NUMBER_MASK) * mmap.PAGESIZE

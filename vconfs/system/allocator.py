"""Settings of a daemon's memory: of the C library's allocator and of collections of garbage."""

from __future__ import annotations

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory(size: int = 32 << 20) -> None:
    """Let the process keep up to `size` bytes of memory that it has freed.

    Data on its way is held in chunks of up to 256 KiB, which are allocated and freed all the time.
    By default glibc returns freed chunks to the kernel at once, and the page faults after the next
    allocation cost ten times as much as copying the data. Do nothing if there is no mallopt(3).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TOP_PAD, size // 2)
        libc.mallopt(_M_TRIM_THRESHOLD, size)
        libc.mallopt(_M_MMAP_THRESHOLD, size // 4)


def collect_only_new_objects() -> None:
    """Leave the objects that exist now out of collections of garbage. A daemon calls this once.

    A full collection looks at all objects, and the event loop waits for it: 40 ms for those of our
    modules, and 200 ms more for 32768 ports. When a daemon is ready it has its modules and usually
    its ports, which stay. They are still freed when nothing refers to them, but no more if only a
    cycle of their own does; as this is called only once, that cannot add up.
    """
    gc.freeze()

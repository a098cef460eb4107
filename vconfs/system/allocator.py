"""Telling the C library's allocator how this program uses memory."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory(size: int = 32 << 20) -> None:
    """Let the process keep up to `size` bytes that it has freed.

    Data on its way is held in chunks of up to 256 KiB, allocated and freed all the time. By default
    glibc gives them back to the kernel at once and gets them anew, and the page faults of that
    cost ten times what copying the data does. Where there is no mallopt(3), nothing happens.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_TOP_PAD, size // 2)
        libc.mallopt(_M_TRIM_THRESHOLD, size)
        libc.mallopt(_M_MMAP_THRESHOLD, size // 4)

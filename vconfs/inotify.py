"""Watching a file or folder by inotify.

Not by inotify_simple, whose first use runs ldconfig: we may not wait for another program.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag

_libc = ctypes.CDLL(None, use_errno=True)


class Change(IntFlag):
    """What can be watched for (sys/inotify.h)."""

    OPENED = 0x20
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATED = 0x100
    DELETED = 0x200
    DELETED_SELF = 0x400
    MOVED_SELF = 0x800


def watch(path: str, changes: Change) -> int:
    """Return a non-blocking descriptor that is readable after such a change; OSError."""
    descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if _libc.inotify_add_watch(descriptor, os.fsencode(path), int(changes)) < 0:
        code = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(code, os.strerror(code))
    return descriptor

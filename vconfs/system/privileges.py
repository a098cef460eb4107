"""Dropping the privileges that a daemon does not need, before it hears from any peer.

A peer or program that takes over a daemon should not get more from the kernel than the daemon
needs. Two things are dropped, and what must go on working decides how:

- **Gaining privileges** (PR_SET_NO_NEW_PRIVS, prctl(2)). No program that the daemon starts from
  then on can gain any, by set-uid, by file capabilities or as root. This cannot be undone, and it
  holds for the children of these programs as well. So it is left out if programs are started that
  may need to gain privileges: those of `exec:`, which may run sudo, and fusermount3, with which a
  daemon that is not root unmounts at its end.
- **Capabilities** of root (capabilities(7)). A daemon opens files, listens on sockets and changes
  owners again at any time: when a file is rotated, a pty replaced, or a port added. `ALWAYS_KEPT`
  are the capabilities for that; the caller adds those of its ports. All others go. The bounding
  set stays: programs that may gain privileges get all of root's capabilities when they start.
  If the daemon is not root, it has only capabilities that were given to it on purpose. They stay.

Both belong to a thread, which passes them on to the threads and programs that it starts. So they
are dropped before there is a second thread; nothing that comes later needs more.

System-call filters and Landlock are left to systemd; docs/security.md says why.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

log: Final = logging.getLogger(__name__)


class Capability(IntEnum):
    """The capabilities of root that a daemon can need (linux/capability.h)."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    FOWNER = 3
    KILL = 5
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12
    IPC_LOCK = 14
    SYS_RAWIO = 17
    SYS_ADMIN = 21
    SYS_RESOURCE = 24


#: The capabilities that every daemon of root keeps.
ALWAYS_KEPT: Final = frozenset(
    {
        Capability.CHOWN,  # of ptys, with uid= and gid=
        Capability.DAC_OVERRIDE,  # files and sockets of other users
        Capability.FOWNER,  # modes and times of files that are other users'
        Capability.KILL,  # programs that have become another user
        Capability.NET_BIND_SERVICE,  # TCP and vsock ports below 1024
        Capability.SYS_RESOURCE,  # pipes beyond the limit of a user, reserved blocks of a disk
    }
)

# linux/prctl.h, linux/capability.h
_PR_SET_NO_NEW_PRIVS: Final = 38
_VERSION_3: Final = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    """struct __user_cap_header_struct; the process ID 0 means this thread."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    """struct __user_cap_data_struct: 32 capabilities of each set."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop_privileges(needed: Collection[int] = (), *, may_gain: bool) -> None:
    """Drop the privileges of this thread, except `ALWAYS_KEPT` and those that are `needed`.

    Programs that it starts can gain privileges only if `may_gain` is true. Call it before any
    other thread is started. If the kernel refuses, log that and keep the privileges.
    """
    if os.geteuid() == 0:
        with _logged("capabilities"):
            _keep_only(ALWAYS_KEPT.union(needed))
    if not may_gain:
        with _logged("the right to gain privileges"):
            _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))))


@contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.info("cannot drop %s: %s", what, error.strerror)


def _keep_only(kept: Collection[int]) -> None:
    """Drop all other capabilities of this thread. Raise OSError if the kernel refuses."""
    header, halves = _Header(_VERSION_3, 0), (_Half * 2)()
    _check(_libc.capget(ctypes.byref(header), halves))
    mask = sum(1 << capability for capability in kept)
    dropped = False
    for half, bits in zip(halves, (mask & 0xFFFFFFFF, mask >> 32), strict=True):
        dropped = dropped or bool(half.permitted & ~bits)
        half.permitted &= bits
        half.effective &= bits
    if dropped:  # a unit's filter may forbid the call
        _check(_libc.capset(ctypes.byref(header), halves))


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

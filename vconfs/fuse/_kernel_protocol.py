"""The kernel's FUSE protocol as bytes: headers, requests and replies (linux/fuse.h, 7.38).

No I/O. Everything has a fixed layout in the machine's byte order. A request is a header of 40 bytes
and a body, a reply a header of 16 bytes and a body.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

import pyfuse3

KERNEL_VERSION: Final = 7
KERNEL_MINOR: Final = 38
MAX_WRITE: Final = 1 << 20
MAX_PAGES: Final = MAX_WRITE // 4096
#: Error codes are below this; the kernel refuses a reply with a larger one.
ERROR_END: Final = 512
#: The longest request: a write with its header, rounded up to a page.
REQUEST_MAX: Final = MAX_WRITE + 4096

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid ext pad
OUT_HEADER: Final = struct.Struct("=IiQ")  # len -errno unique
READ_IN: Final = struct.Struct("=QQIIQII")  # fh off size read_flags lock_owner flags pad
#: The fields of READ and WRITE that we need, header included: opcode unique fh off size flags
TRANSFER: Final = struct.Struct("=4xIQ24xQQI12xI4x")
WRITE_OUT: Final = struct.Struct("=II")  # size pad
WRITE_REPLY: Final = struct.Struct("=IiQII")  # header and WRITE_OUT in one
INIT_IN: Final = struct.Struct("=IIII")  # major minor max_readahead flags
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHI28x")
OPEN_IN: Final = struct.Struct("=II")
OPEN_OUT: Final = struct.Struct("=QII")  # fh open_flags backing_id
CREATE_IN: Final = struct.Struct("=IIII")  # flags mode umask open_flags
MKNOD_IN: Final = struct.Struct("=IIII")  # mode rdev umask pad
MKDIR_IN: Final = struct.Struct("=II")  # mode umask
RENAME_IN: Final = struct.Struct("=Q")
RENAME2_IN: Final = struct.Struct("=QII")
LINK_IN: Final = struct.Struct("=Q")
RELEASE_IN: Final = struct.Struct("=QIIQ")
FSYNC_IN: Final = struct.Struct("=QII")
FLUSH_IN: Final = struct.Struct("=QIIQ")
GETXATTR_IN: Final = struct.Struct("=II")
GETXATTR_OUT: Final = struct.Struct("=II")
SETXATTR_IN: Final = struct.Struct("=II")
ACCESS_IN: Final = struct.Struct("=II")
INTERRUPT_IN: Final = struct.Struct("=Q")
FORGET_IN: Final = struct.Struct("=Q")
BATCH_FORGET_IN: Final = struct.Struct("=II")
FORGET_ONE: Final = struct.Struct("=QQ")
POLL_IN: Final = struct.Struct("=QQII")  # fh kh flags events
POLL_OUT: Final = struct.Struct("=II")
POLL_WAKEUP: Final = struct.Struct("=Q")
INVAL_INODE_OUT: Final = struct.Struct("=Qqq")  # nodeid offset length
INVAL_ENTRY_OUT: Final = struct.Struct("=QII")  # parent name_length flags; then the name and NUL
DELETE_OUT: Final = struct.Struct("=QQII")  # parent child name_length pad; then the name and NUL
STORE_OUT: Final = struct.Struct("=QQII")  # nodeid offset size pad; then the data
SETATTR_IN: Final = struct.Struct("=IIQQQqqqIIIIIIII")
ATTR_OUT: Final = struct.Struct("=QII")  # valid, valid_nsec, dummy; then ATTR
ATTR: Final = struct.Struct("=QQQqqqIIIIIIIIII")  # times may be before 1970
ENTRY_OUT: Final = struct.Struct("=QQQQII")  # nodeid generation, validity; then ATTR
STATFS_OUT: Final = struct.Struct("=QQQQQIIII24x")
DIRENT: Final = struct.Struct("=QQII")


class Opcode(IntEnum):
    """The `opcode` of a request."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    POLL = 40
    BATCH_FORGET = 42
    READDIRPLUS = 44
    RENAME2 = 45


#: Requests that have no reply.
UNANSWERED: Final = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT))


class MalformedRequest(Exception):
    """A request is shorter than its opcode requires."""


class InitFlag(IntFlag):
    """The features that the kernel and the file system negotiate at INIT."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22


#: Without READDIRPLUS_AUTO: to a pyfuse3.Operations each entry of a listing counts as a look-up,
#: but the kernel only forgets those of READDIRPLUS.
WANTED: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
)


class OpenFlag(IntFlag):
    """How the kernel treats an open file."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    STREAM = 1 << 4  # no file position: a read and a write do not wait for each other


class SetattrValid(IntFlag):
    """The fields of a SETATTR that are valid."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    CTIME = 1 << 10


#: The longest time that something may be valid, in seconds.
_FOR_EVER: Final = float(1 << 62)

POLL_SCHEDULE_NOTIFY: Final = 1
NOTIFY_POLL: Final = 1
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INVAL_ENTRY: Final = 3
NOTIFY_STORE: Final = 4
NOTIFY_DELETE: Final = 6
FSYNC_FDATASYNC: Final = 1


def init_reply(minor: int, max_readahead: int, flags: int) -> bytes:
    """Return the reply to INIT: our version, the negotiated features, and our largest write."""
    return INIT_OUT.pack(
        KERNEL_VERSION,
        min(minor, KERNEL_MINOR),
        max_readahead,
        flags,
        64,  # the most background requests
        48,  # the number of them at which the kernel reports congestion
        MAX_WRITE,
        1,  # times in nanoseconds
        MAX_PAGES,
        0,
        0,
    )


def attributes(entry: pyfuse3.EntryAttributes) -> bytes:
    """Return the attributes of a node as they are in several replies."""
    atime, atime_ns = divmod(entry.st_atime_ns, 10**9)
    mtime, mtime_ns = divmod(entry.st_mtime_ns, 10**9)
    ctime, ctime_ns = divmod(entry.st_ctime_ns, 10**9)
    return ATTR.pack(
        entry.st_ino,
        entry.st_size,
        entry.st_blocks,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        entry.st_mode,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_rdev & 0xFFFFFFFF,  # the kernel's number is shorter than the C library's
        entry.st_blksize,
        0,
    )


def attr_reply(entry: pyfuse3.EntryAttributes) -> bytes:
    """Return the reply to GETATTR and SETATTR."""
    seconds, fraction = _timeout(entry.attr_timeout)
    return ATTR_OUT.pack(seconds, fraction, 0) + attributes(entry)


def entry_reply(entry: pyfuse3.EntryAttributes) -> bytes:
    """Return the reply to LOOKUP, MKNOD and all other requests that return an entry."""
    entry_s, entry_ns = _timeout(entry.entry_timeout)
    attr_s, attr_ns = _timeout(entry.attr_timeout)
    head = ENTRY_OUT.pack(entry.st_ino, entry.generation, entry_s, attr_s, entry_ns, attr_ns)
    return head + attributes(entry)


def open_reply(info: pyfuse3.FileInfo) -> bytes:
    """Return the reply to OPEN. A nonseekable file is opened as a stream."""
    flags = OpenFlag(0)
    if info.direct_io:
        flags |= OpenFlag.DIRECT_IO
    if info.keep_cache:
        flags |= OpenFlag.KEEP_CACHE
    if info.nonseekable:
        flags |= OpenFlag.NONSEEKABLE | OpenFlag.STREAM
    return OPEN_OUT.pack(info.fh, flags, 0)


def statfs_reply(data: pyfuse3.StatvfsData) -> bytes:
    """Return the reply to STATFS."""
    return STATFS_OUT.pack(
        data.f_blocks,
        data.f_bfree,
        data.f_bavail,
        data.f_files,
        data.f_ffree,
        data.f_bsize,
        data.f_namemax,
        data.f_frsize,
        0,
    )


def dirent(inode: int, next_id: int, mode: int, name: bytes) -> bytes:
    """Return an entry of a READDIR reply, padded to 8 bytes."""
    entry = DIRENT.pack(inode, next_id, len(name), mode >> 12 & 0o17) + name
    return entry + bytes(-len(entry) % 8)


def _timeout(seconds: float) -> tuple[int, int]:
    seconds = min(max(seconds, 0), _FOR_EVER)
    whole = int(seconds)
    return whole, int((seconds - whole) * 10**9)

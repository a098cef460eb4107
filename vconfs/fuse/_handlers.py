"""The handlers, which turn requests into calls of pyfuse3.Operations, and the results into replies.

A handler unpacks the request's body, awaits the operation and packs the answer. The session handles
errors: it answers a FUSEError with its errno, and a malformed body with EIO.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pyfuse3
from attrs import frozen
from pyfuse3 import FUSEError

from vconfs.fuse import _kernel_protocol as wire
from vconfs.fuse._kernel_protocol import MalformedRequest, Opcode, SetattrValid
from vconfs.fuse._operations import PollHandle, ReaddirToken, RequestContext, SetattrFields


@frozen
class Request:
    """A request other than a read or a write."""

    #: The file system, typed as Any because we pass it contexts and tokens of our own classes.
    operations: Any
    #: Makes a handle that notifies the kernel about a polled file.
    poll_handle: Callable[[int], PollHandle]
    opcode: int
    unique: int
    node: int
    context: RequestContext
    body: bytes

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Unpack the head of the body. Raise MalformedRequest if the body is too short."""
        if len(self.body) < layout.size:
            raise MalformedRequest("short body")
        return layout.unpack_from(self.body)

    def names(self, count: int, start: int = 0) -> list[bytes]:
        """Return `count` NUL-terminated names from `start` on.

        Raise MalformedRequest if there are fewer.
        """
        *names, _ = self.body[start:].split(b"\0", count)
        if len(names) < count:
            raise MalformedRequest("name missing")
        return names

    def caller(self, umask: int) -> RequestContext:
        """Return the request's context with a umask, which only some requests contain."""
        return RequestContext(self.context.uid, self.context.gid, self.context.pid, umask)


@frozen
class Handler:
    """The handler of an opcode: the name of the operation, and the function that answers."""

    name: str
    answer: Callable[[Request], Awaitable[bytes]]


#: The handler of each opcode.
HANDLERS: dict[int, Handler] = {}


def _answers(
    *opcodes: Opcode, name: str
) -> Callable[[Callable[[Request], Awaitable[bytes]]], Callable[[Request], Awaitable[bytes]]]:
    def register(
        answer: Callable[[Request], Awaitable[bytes]],
    ) -> Callable[[Request], Awaitable[bytes]]:
        for opcode in opcodes:
            HANDLERS[opcode] = Handler(name, answer)
        return answer

    return register


# --- names --------------------------------------------------------------------------------


@_answers(Opcode.LOOKUP, name="lookup")
async def _lookup(request: Request) -> bytes:
    (name,) = request.names(1)
    entry = await request.operations.lookup(request.node, name, request.context)
    return wire.entry_reply(entry)


@_answers(Opcode.FORGET, name="forget")
async def _forget(request: Request) -> bytes:
    (count,) = request.unpack(wire.FORGET_IN)
    await request.operations.forget([(request.node, count)])
    return b""


@_answers(Opcode.BATCH_FORGET, name="forget")
async def _batch_forget(request: Request) -> bytes:
    count, _ = request.unpack(wire.BATCH_FORGET_IN)
    items = request.body[wire.BATCH_FORGET_IN.size :]
    whole = items[: min(count, len(items) // 16) * 16]
    await request.operations.forget(list(wire.FORGET_ONE.iter_unpack(whole)))
    return b""


@_answers(Opcode.READLINK, name="readlink")
async def _readlink(request: Request) -> bytes:
    return bytes(await request.operations.readlink(request.node, request.context))


@_answers(Opcode.SYMLINK, name="symlink")
async def _symlink(request: Request) -> bytes:
    name, target = request.names(2)
    entry = await request.operations.symlink(request.node, name, target, request.context)
    return wire.entry_reply(entry)


@_answers(Opcode.MKNOD, name="mknod")
async def _mknod(request: Request) -> bytes:
    mode, rdev, umask, _ = request.unpack(wire.MKNOD_IN)
    (name,) = request.names(1, wire.MKNOD_IN.size)
    entry = await request.operations.mknod(request.node, name, mode, rdev, request.caller(umask))
    return wire.entry_reply(entry)


@_answers(Opcode.MKDIR, name="mkdir")
async def _mkdir(request: Request) -> bytes:
    mode, umask = request.unpack(wire.MKDIR_IN)
    (name,) = request.names(1, wire.MKDIR_IN.size)
    mode = stat.S_IFDIR | stat.S_IMODE(mode)  # the kernel sends no type, as every one is a folder
    entry = await request.operations.mkdir(request.node, name, mode, request.caller(umask))
    return wire.entry_reply(entry)


@_answers(Opcode.UNLINK, name="unlink")
async def _unlink(request: Request) -> bytes:
    (name,) = request.names(1)
    await request.operations.unlink(request.node, name, request.context)
    return b""


@_answers(Opcode.RMDIR, name="rmdir")
async def _rmdir(request: Request) -> bytes:
    (name,) = request.names(1)
    await request.operations.rmdir(request.node, name, request.context)
    return b""


@_answers(Opcode.RENAME, Opcode.RENAME2, name="rename")
async def _rename(request: Request) -> bytes:
    layout = wire.RENAME_IN if request.opcode == Opcode.RENAME else wire.RENAME2_IN
    new_parent, *rest = request.unpack(layout)
    old, new = request.names(2, layout.size)
    flags = rest[0] if rest else 0
    operations, context = request.operations, request.context
    await operations.rename(request.node, old, new_parent, new, flags, context)
    return b""


@_answers(Opcode.LINK, name="link")
async def _link(request: Request) -> bytes:
    (node,) = request.unpack(wire.LINK_IN)
    (name,) = request.names(1, wire.LINK_IN.size)
    entry = await request.operations.link(node, request.node, name, request.context)
    return wire.entry_reply(entry)


# --- attributes ---------------------------------------------------------------------------


@_answers(Opcode.GETATTR, name="getattr")
async def _getattr(request: Request) -> bytes:
    return wire.attr_reply(await request.operations.getattr(request.node, request.context))


@_answers(Opcode.SETATTR, name="setattr")
async def _setattr(request: Request) -> bytes:
    fields = request.unpack(wire.SETATTR_IN)
    valid, fh, size, atime, mtime, ctime = SetattrValid(fields[0]), *fields[2:4], *fields[5:8]
    attr = pyfuse3.EntryAttributes()
    try:
        attr.st_size = size
    except OverflowError:  # more than 2**63 - 1, which no file has
        raise FUSEError(errno.EINVAL) from None
    attr.st_atime_ns = atime * 10**9 + fields[8]
    attr.st_mtime_ns = mtime * 10**9 + fields[9]
    attr.st_ctime_ns = ctime * 10**9 + fields[10]
    attr.st_mode, attr.st_uid, attr.st_gid = fields[11], fields[13], fields[14]
    wanted = SetattrFields(
        update_mode=bool(valid & SetattrValid.MODE),
        update_uid=bool(valid & SetattrValid.UID),
        update_gid=bool(valid & SetattrValid.GID),
        update_size=bool(valid & SetattrValid.SIZE),
        update_atime=bool(valid & (SetattrValid.ATIME | SetattrValid.ATIME_NOW)),
        update_mtime=bool(valid & (SetattrValid.MTIME | SetattrValid.MTIME_NOW)),
        update_ctime=bool(valid & SetattrValid.CTIME),
    )
    handle = fh if valid & SetattrValid.FH else None
    operations, context = request.operations, request.context
    return wire.attr_reply(await operations.setattr(request.node, attr, wanted, handle, context))


@_answers(Opcode.ACCESS, name="access")
async def _access(request: Request) -> bytes:
    mode, _ = request.unpack(wire.ACCESS_IN)
    if not await request.operations.access(request.node, mode, request.context):
        raise FUSEError(errno.EACCES)
    return b""


@_answers(Opcode.STATFS, name="statfs")
async def _statfs(request: Request) -> bytes:
    return wire.statfs_reply(await request.operations.statfs(request.context))


@_answers(Opcode.SETXATTR, name="setxattr")
async def _setxattr(request: Request) -> bytes:
    size, flags = request.unpack(wire.SETXATTR_IN)
    (name,) = request.names(1, wire.SETXATTR_IN.size)
    start = wire.SETXATTR_IN.size + len(name) + 1
    value = request.body[start : start + size]
    if len(value) < size:
        raise MalformedRequest("short value")
    await _check_xattr(request, name, flags)
    await request.operations.setxattr(request.node, name, value, request.context)
    return b""


async def _check_xattr(request: Request, name: bytes, flags: int) -> None:
    """Raise FUSEError if the attribute is there and must not be, or is not and must be.

    `setxattr` of pyfuse3.Operations has no flags. Like pyfuse3.main(), we ask `getxattr` before.
    """
    if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
        raise FUSEError(errno.EINVAL)
    if not flags:
        return
    try:
        await request.operations.getxattr(request.node, name, request.context)
    except FUSEError as error:
        if flags & os.XATTR_REPLACE or error.errno != pyfuse3.ENOATTR:
            raise
    else:
        if flags & os.XATTR_CREATE:
            raise FUSEError(errno.EEXIST)


@_answers(Opcode.GETXATTR, name="getxattr")
async def _getxattr(request: Request) -> bytes:
    size, _ = request.unpack(wire.GETXATTR_IN)
    (name,) = request.names(1, wire.GETXATTR_IN.size)
    return _sized(size, await request.operations.getxattr(request.node, name, request.context))


@_answers(Opcode.LISTXATTR, name="listxattr")
async def _listxattr(request: Request) -> bytes:
    size, _ = request.unpack(wire.GETXATTR_IN)
    names: Sequence[bytes] = await request.operations.listxattr(request.node, request.context)
    return _sized(size, b"".join(name + b"\0" for name in names))


@_answers(Opcode.REMOVEXATTR, name="removexattr")
async def _removexattr(request: Request) -> bytes:
    (name,) = request.names(1)
    await request.operations.removexattr(request.node, name, request.context)
    return b""


def _sized(size: int, value: bytes) -> bytes:
    """Return the reply with the value, or with its length if the size is 0.

    Raise FUSEError (ERANGE) if the value is longer than `size`.
    """
    if not size:
        return wire.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise FUSEError(errno.ERANGE)
    return value


# --- files --------------------------------------------------------------------------------


@_answers(Opcode.OPEN, name="open")
async def _open(request: Request) -> bytes:
    flags, _ = request.unpack(wire.OPEN_IN)
    return wire.open_reply(await request.operations.open(request.node, flags, request.context))


@_answers(Opcode.CREATE, name="create")
async def _create(request: Request) -> bytes:
    flags, mode, umask, _ = request.unpack(wire.CREATE_IN)
    (name,) = request.names(1, wire.CREATE_IN.size)
    operations, caller = request.operations, request.caller(umask)
    info, entry = await operations.create(request.node, name, mode, flags, caller)
    return wire.entry_reply(entry) + wire.open_reply(info)


@_answers(Opcode.RELEASE, name="release")
async def _release(request: Request) -> bytes:
    await request.operations.release(request.unpack(wire.RELEASE_IN)[0])
    return b""


@_answers(Opcode.FLUSH, name="flush")
async def _flush(request: Request) -> bytes:
    await request.operations.flush(request.unpack(wire.FLUSH_IN)[0])
    return b""


@_answers(Opcode.FSYNC, name="fsync")
async def _fsync(request: Request) -> bytes:
    fh, flags, _ = request.unpack(wire.FSYNC_IN)
    await request.operations.fsync(fh, bool(flags & wire.FSYNC_FDATASYNC))
    return b""


@_answers(Opcode.POLL, name="poll")
async def _poll(request: Request) -> bytes:
    fh, kh, flags, _ = request.unpack(wire.POLL_IN)
    handle = request.poll_handle(kh) if flags & wire.POLL_SCHEDULE_NOTIFY else None
    mask = await request.operations.poll(request.node, fh, handle, request.context)
    return wire.POLL_OUT.pack(mask, 0)


# --- directories --------------------------------------------------------------------------


@_answers(Opcode.OPENDIR, name="opendir")
async def _opendir(request: Request) -> bytes:
    fh = await request.operations.opendir(request.node, request.context)
    return wire.OPEN_OUT.pack(fh, 0, 0)


@_answers(Opcode.READDIR, Opcode.READDIRPLUS, name="readdir")
async def _readdir(request: Request) -> bytes:
    fh, start, size, *_ = request.unpack(wire.READ_IN)
    token = ReaddirToken(size, plus=request.opcode == Opcode.READDIRPLUS)
    await request.operations.readdir(fh, start, token)
    return bytes(token.reply)


@_answers(Opcode.RELEASEDIR, name="releasedir")
async def _releasedir(request: Request) -> bytes:
    await request.operations.releasedir(request.unpack(wire.RELEASE_IN)[0])
    return b""


@_answers(Opcode.FSYNCDIR, name="fsyncdir")
async def _fsyncdir(request: Request) -> bytes:
    fh, flags, _ = request.unpack(wire.FSYNC_IN)
    await request.operations.fsyncdir(fh, bool(flags & wire.FSYNC_FDATASYNC))
    return b""


@_answers(Opcode.DESTROY, name="destroy")
async def _destroy(request: Request) -> bytes:
    return b""

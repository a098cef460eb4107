"""The session: it reads the kernel's requests and makes sure that each is answered.

Theory of operation
-------------------
One task reads the FUSE device (`run`). It reads until the device is empty, and only then waits: a
task switch per request would cost more than most requests do. After every 32 requests other tasks
get their turn.

Reads and writes are first tried at once (`PortOperations.read_nowait`, `write_nowait`). Handlers
that never wait (`prompt`) are awaited in place, so that opens, closes and look-ups happen in the
order in which the kernel sent them. Every other request becomes a task with a cancel scope, which
is stored by the request's number before the task starts. When a waiting program gets a signal, the
kernel sends FUSE_INTERRUPT with that number: the scope is cancelled, and the answer is EINTR.

Every request is answered exactly once, except FORGET, BATCH_FORGET and INTERRUPT, which have no
answer. ENOENT from writing a reply means that no program waits for it any more; ENODEV from a read
means that the file system was unmounted.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import pyfuse3
import trio
from pyfuse3 import FUSEError

from vconfs.fuse import _kernel_protocol as wire
from vconfs.fuse._handlers import HANDLERS, Request
from vconfs.fuse._kernel_protocol import MalformedRequest, Opcode
from vconfs.fuse._mountpoint import MountError
from vconfs.fuse._notifier import Notifier
from vconfs.fuse._operations import PollHandle, RequestContext
from vconfs.fuse._routing import routed
from vconfs.protocol.events import Buffer
from vconfs.system.log_once import LogOnce

log: Final = logging.getLogger(__name__)

_pack_head: Final = wire.OUT_HEADER.pack
_HEAD: Final = wire.OUT_HEADER.size
_pack_written: Final = wire.WRITE_REPLY.pack
_WRITTEN: Final = wire.WRITE_REPLY.size

#: The most requests served before other tasks have their turn.
_TURN: Final = 32
#: The most pieces that one writev takes.
_PIECES: Final = os.sysconf("SC_IOV_MAX")
#: Types of the data of a read that is one piece, not a sequence of pieces.
_ONE_PIECE: Final = (bytes, memoryview, bytearray)
#: Requests that the loop handles itself, without a task or a handler.
_TRANSFERS: Final = (Opcode.READ, Opcode.WRITE)
#: A call that computes the body of a reply, or replies itself and returns None.
_Answer = Callable[[], Awaitable[Buffer | None]]
#: Errors of a reply for which no program waits any more: the request was cancelled (ENOENT), or
#: the mount has ended.
_NOT_AWAITED: Final = frozenset(
    (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EPIPE, errno.EBADF)
)
#: The feature that each of these attributes of a pyfuse3.Operations requests.
_ABILITIES: Final = {
    "supports_dot_lookup": wire.InitFlag.EXPORT_SUPPORT,
    "enable_writeback_cache": wire.InitFlag.WRITEBACK_CACHE,
    "enable_acl": wire.InitFlag.POSIX_ACL,
}


class Session:
    """A server of one mounted file system.

    `device` is the non-blocking descriptor of the FUSE device; the caller closes it after `run`.
    `operations` is a pyfuse3.Operations, which may also implement `PortOperations`.
    """

    def __init__(self, operations: pyfuse3.Operations, device: int) -> None:
        self.operations = operations
        #: Changes what the kernel has in its caches. pyfuse3's functions do so by it as well.
        self.notifier: Notifier = Notifier(device)
        self._device = device
        self._buffer = bytearray(wire.REQUEST_MAX)
        self._view = memoryview(self._buffer)
        self._prompt: frozenset[str] = getattr(operations, "prompt", frozenset())
        self._read_nowait = getattr(operations, "read_nowait", None)
        self._write_nowait = getattr(operations, "write_nowait", None)
        self._read_pieces = getattr(operations, "read_pieces", None)
        self._read_done = getattr(operations, "read_done", lambda fh: None)
        self._scopes: dict[int, trio.CancelScope] = {}
        self._settled = trio.lowlevel.ParkingLot()
        self._trouble = LogOnce(log)
        self._nursery: trio.Nursery
        self._task_status: trio.TaskStatus[None]
        self._agreed = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until unmounted. The task has started after the negotiation with the kernel.

        When cancelled, answer every waiting request with EINTR. Raise MountError if the file system
        was unmounted before the negotiation.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery, self._task_status = nursery, task_status
                with routed(self):
                    await self._serve()
                nursery.cancel_scope.cancel()
        finally:
            self._device = -1  # a late notification must not go to a reused descriptor
            self.notifier.close()
        if not self._agreed:
            raise MountError("it was unmounted before the kernel had begun to use it")

    def terminate(self) -> None:
        """End `run`, as pyfuse3.terminate() ends pyfuse3.main(). The mount stays."""
        self._nursery.cancel_scope.cancel()

    async def settle(self, patience: float = 1.0) -> None:
        """Wait until no request waits for its answer, for at most `patience` seconds."""
        with trio.move_on_after(patience):
            while self._scopes:
                await self._settled.park()

    async def _serve(self) -> None:
        # This loop takes about as long per request as the system calls do. So it uses locals, and
        # unpacks the fields of a read or a write in one call.
        device, buffers, buffer, view = self._device, [self._buffer], self._buffer, self._view
        readv, unpack, whole = os.readv, wire.TRANSFER.unpack_from, wire.TRANSFER.size
        read, write = int(Opcode.READ), int(Opcode.WRITE)
        on_read, on_write = self._on_read, self._on_write
        while True:
            for _ in range(_TURN):
                try:
                    size = readv(device, buffers)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(device)
                    break
                except OSError as error:
                    if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                        return
                    if error.errno == errno.ENOENT:
                        continue  # the request was cancelled
                    raise
                opcode, unique, fh, offset, wanted, flags = unpack(buffer)
                if opcode == read and size >= whole:
                    on_read(unique, fh, offset, wanted, flags)
                elif opcode == write and size == whole + wanted:
                    on_write(unique, fh, offset, view[whole:size], flags)
                elif size:
                    await self._dispatch(size)
                else:
                    return  # end of file: only the closed socket of a test has one
            else:
                await trio.lowlevel.checkpoint()

    # --- replies --------------------------------------------------------------------------

    def _reply(self, unique: int, body: Buffer) -> None:
        self._send((_pack_head(_HEAD + len(body), 0, unique), body))

    def _reply_error(self, unique: int, code: int) -> None:
        code = code if 0 < code < wire.ERROR_END else errno.EIO  # the kernel refuses others
        self._send((_pack_head(_HEAD, -code, unique),))

    def _reply_pieces(self, unique: int, data: Sequence[Buffer]) -> None:
        if len(data) >= _PIECES:
            data = [b"".join(data)]
        self._send((_pack_head(_HEAD + sum(map(len, data)), 0, unique), *data))

    def _send(self, parts: Sequence[Buffer]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:
            if error.errno not in _NOT_AWAITED:
                self._refused(parts[0], error)

    def _refused(self, head: Buffer, error: OSError) -> None:
        """Answer with EIO: without an answer, the program would wait for ever."""
        self._trouble.warning(("reply", error.errno), "the kernel refuses a reply: %s", error)
        _, _, unique = wire.OUT_HEADER.unpack_from(head)
        if unique:  # otherwise it was a notification
            with suppress(OSError):
                os.writev(self._device, [_pack_head(_HEAD, -errno.EIO, unique)])

    def notify_poll(self, kh: int) -> None:
        """Wake the programs that poll: the kernel then calls `poll` again."""
        head = _pack_head(_HEAD + wire.POLL_WAKEUP.size, wire.NOTIFY_POLL, 0)
        self._send((head, wire.POLL_WAKEUP.pack(kh)))

    def poll_handle(self, kh: int) -> PollHandle:
        """Return a handle to pass to `poll`."""
        return PollHandle(self.notify_poll, kh)

    # --- reading and writing --------------------------------------------------------------

    def _on_read(self, unique: int, fh: int, offset: int, size: int, flags: int) -> None:
        if self._read_nowait is None:
            return self._start_read(unique, fh, offset, size)
        try:
            data = self._read_nowait(fh, size, flags)
            if isinstance(data, _ONE_PIECE):
                self._send((_pack_head(_HEAD + len(data), 0, unique), data))
            else:
                self._reply_pieces(unique, data)
                self._read_done(fh)
        except trio.WouldBlock:
            if flags & os.O_NONBLOCK:
                self._reply_error(unique, errno.EAGAIN)
            elif offset:
                self._reply(unique, b"")  # the rest of one long read, which ends here
            else:
                self._start_read(unique, fh, offset, size)
        except FUSEError as error:
            self._reply_error(unique, error.errno)
        except Exception:
            self._failed(unique, Opcode.READ)

    def _on_write(self, unique: int, fh: int, offset: int, data: memoryview, flags: int) -> None:
        if self._write_nowait is None:
            return self._start_write(unique, fh, offset, data)
        try:
            taken = self._write_nowait(fh, data, flags)
            self._send((_pack_written(_WRITTEN, 0, unique, taken, 0),))
        except trio.WouldBlock:
            if flags & os.O_NONBLOCK or (offset and not flags & os.O_APPEND):
                # An offset means the rest of one long write, which the kernel then ends here. With
                # O_APPEND every write has an offset: the file size as the kernel knows it.
                self._reply_error(unique, errno.EAGAIN)
            else:
                self._start_write(unique, fh, offset, data)
        except FUSEError as error:
            self._reply_error(unique, error.errno)
        except Exception:
            self._failed(unique, Opcode.WRITE)

    def _start_read(self, unique: int, fh: int, offset: int, size: int) -> None:
        self._start(unique, Opcode.READ, partial(self._read, unique, fh, offset, size))

    async def _read(self, unique: int, fh: int, offset: int, size: int) -> Buffer | None:
        if self._read_pieces is None:
            return await self.operations.read(pyfuse3.FileHandleT(fh), offset, size)
        self._reply_pieces(unique, await self._read_pieces(fh, size))
        self._read_done(fh)
        return None

    def _start_write(self, unique: int, fh: int, offset: int, data: memoryview) -> None:
        kept = bytes(data)  # the buffer is reused for the next request
        self._start(unique, Opcode.WRITE, partial(self._write, fh, offset, kept))

    async def _write(self, fh: int, offset: int, data: bytes) -> bytes:
        taken = await self.operations.write(pyfuse3.FileHandleT(fh), offset, data)
        return wire.WRITE_OUT.pack(taken, 0)

    # --- everything else ------------------------------------------------------------------

    async def _dispatch(self, size: int) -> None:
        if size < wire.IN_HEADER.size:
            return self._trouble.warning("short", "the kernel sent a request of %d bytes", size)
        _, opcode, unique, node, uid, gid, pid, _, _ = wire.IN_HEADER.unpack_from(self._buffer)
        body = bytes(self._view[wire.IN_HEADER.size : size])
        request = Request(
            self.operations,
            self.poll_handle,
            opcode,
            unique,
            node,
            RequestContext(uid, gid, pid),
            body,
        )
        try:
            if opcode in _TRANSFERS:  # the loop handles all except those of a wrong length
                return self._malformed(unique, opcode)
            if opcode == Opcode.INTERRUPT:
                return self._on_interrupt(request)
            if opcode == Opcode.INIT:
                return self._on_init(request)
        except MalformedRequest:
            return self._malformed(unique, opcode)
        handler = HANDLERS.get(opcode)
        if handler is None:
            return self._reply_error(unique, errno.ENOSYS)
        answer = partial(handler.answer, request)
        if handler.name in self._prompt:
            return await self._answer(unique, opcode, answer)
        return self._start(unique, opcode, answer)

    def _start(self, unique: int, opcode: int, answer: _Answer) -> None:
        scope = self._scopes[unique] = trio.CancelScope()

        async def task() -> None:
            try:
                with scope:
                    await self._answer(unique, opcode, answer)
            finally:
                del self._scopes[unique]
                if not self._scopes:
                    self._settled.unpark_all()

        self._nursery.start_soon(task)

    async def _answer(self, unique: int, opcode: int, answer: _Answer) -> None:
        try:
            reply = await answer()
            if reply is not None and opcode not in wire.UNANSWERED:
                self._reply(unique, reply)
        except FUSEError as error:
            self._refuse(unique, opcode, error.errno)
        except MalformedRequest:
            self._malformed(unique, opcode)
        except Exception:
            self._failed(unique, opcode)
        except BaseException:  # Cancelled, alone or in a group
            self._refuse(unique, opcode, errno.EINTR)
            raise

    def _on_interrupt(self, request: Request) -> None:
        (unique,) = request.unpack(wire.INTERRUPT_IN)
        scope = self._scopes.get(unique)
        if scope is not None:
            scope.cancel()

    def _on_init(self, request: Request) -> None:
        major, minor, readahead, offered = request.unpack(wire.INIT_IN)
        if major < wire.KERNEL_VERSION:
            return self._reply_error(request.unique, errno.EPROTO)
        wanted = wire.WANTED
        for attribute, flag in _ABILITIES.items():
            if getattr(self.operations, attribute, False):
                wanted |= flag
        self._reply(request.unique, wire.init_reply(minor, readahead, wanted & offered))
        self.operations.init()
        self._agreed = True
        self._task_status.started()

    # --- errors ---------------------------------------------------------------------------

    def _refuse(self, unique: int, opcode: int, code: int) -> None:
        if opcode not in wire.UNANSWERED:
            self._reply_error(unique, code)

    def _malformed(self, unique: int, opcode: int) -> None:
        kind = "malformed", opcode
        self._trouble.warning(kind, "a malformed request (opcode %d) was refused", opcode)
        self._refuse(unique, opcode, errno.EIO)

    def _failed(self, unique: int, opcode: int) -> None:
        self._trouble.exception(opcode, "the handler of %s failed", Opcode(opcode).name)
        self._refuse(unique, opcode, errno.EIO)

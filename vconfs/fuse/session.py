"""The session: it reads the kernel's requests and sees to it that each is answered.

Theory of operation
-------------------
One task reads the FUSE device (`run`). It drains the device until there is nothing left, and only
then waits: a task switch per request would cost more than most requests do. After every 32
requests other tasks get their turn.

Reads and writes are first tried at once (`PortOperations.read_nowait`, `write_nowait`). Handlers
that never wait (`prompt`) are awaited in place, so that opens, closes and look-ups happen in the
order in which the kernel sent them. Everything else becomes a task. Each task runs in a cancel
scope that is kept under its request's number before the task starts, for FUSE_INTERRUPT, which
the kernel sends when a signal comes for whoever waits, cancels it: the answer is EINTR.

Every request is answered exactly once, but for FORGET, BATCH_FORGET and INTERRUPT, which have no
answer. ENOENT from a reply means that the request is not waited for any more; ENODEV from a read
that the file system was unmounted.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from typing import Any, Final

import pyfuse3
import trio
from pyfuse3 import FUSEError

from vconfs.fuse import wire
from vconfs.fuse.handlers import HANDLERS, NO_REPLY, Request
from vconfs.fuse.operations import PollHandle, RequestContext, readdir_reply
from vconfs.fuse.wire import Opcode
from vconfs.protocol.events import Buffer

log = logging.getLogger(__name__)

#: So many requests are served before other tasks have their turn.
_TURN: Final = 32


class Session:
    """Serves one mounted file system.

    `device` is the FUSE device's descriptor, non-blocking; its owner closes it after `run`.
    `operations` is a pyfuse3.Operations, and may be `PortOperations` as well.
    """

    def __init__(self, operations: pyfuse3.Operations, device: int) -> None:
        self.operations = operations
        self._device = device
        self._buffer = bytearray(wire.REQUEST_MAX)
        self._view = memoryview(self._buffer)
        self._prompt: frozenset[str] = getattr(operations, "prompt", frozenset())
        self._read_nowait = getattr(operations, "read_nowait", None)
        self._write_nowait = getattr(operations, "write_nowait", None)
        self._scopes: dict[int, trio.CancelScope] = {}
        self._started = trio.Event()
        self._complained: set[Any] = set()
        self._nursery: trio.Nursery

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until unmounted; `started` is called when the kernel and we have agreed.

        When cancelled, every request that waits is answered with EINTR.
        """
        # pyfuse3's own readdir_reply takes pyfuse3's tokens only, and operations written for
        # pyfuse3.main() call that one: while we run, it takes ours as well.
        stock, pyfuse3.readdir_reply = pyfuse3.readdir_reply, readdir_reply
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._tell_started, task_status)
                await self._serve()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.readdir_reply = stock

    async def _tell_started(self, task_status: trio.TaskStatus[None]) -> None:
        await self._started.wait()
        task_status.started()

    async def _serve(self) -> None:
        device, buffers, buffer = self._device, [self._buffer], self._buffer
        unpack = wire.IN_HEADER.unpack_from
        while True:
            for _ in range(_TURN):
                try:
                    size = os.readv(device, buffers)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(device)
                    break
                except OSError as error:
                    if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                        return
                    if error.errno in (errno.ENOENT, errno.EINTR):
                        continue  # the request was taken back
                    raise
                if size < wire.IN_HEADER.size:
                    return  # only a test's socket that was closed does this
                _, opcode, unique, node, uid, gid, pid, _, _ = unpack(buffer)
                if opcode == Opcode.READ:
                    self._on_read(unique, node, size)
                elif opcode == Opcode.WRITE:
                    self._on_write(unique, node, size)
                else:
                    await self._dispatch(opcode, unique, node, RequestContext(uid, gid, pid), size)
            else:
                await trio.lowlevel.checkpoint()

    # --- replies --------------------------------------------------------------------------

    def _reply(self, unique: int, *parts: Buffer) -> None:
        size = wire.OUT_HEADER.size + sum(map(len, parts))
        self._send([wire.OUT_HEADER.pack(size, 0, unique), *parts])

    def _reply_error(self, unique: int, code: int) -> None:
        self._send([wire.OUT_HEADER.pack(wire.OUT_HEADER.size, -code, unique)])

    def _reply_data(self, unique: int, data: Buffer | Sequence[Buffer]) -> None:
        if isinstance(data, bytes | bytearray | memoryview):
            self._reply(unique, data)
        else:
            self._reply(unique, *data)

    def _reply_written(self, unique: int, size: int) -> None:
        self._send([wire.WRITE_REPLY.pack(wire.WRITE_REPLY.size, 0, unique, size, 0)])

    def _send(self, parts: list[Buffer]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:
            # ENOENT: nobody waits for this answer any more. The others: the mount has ended.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.EPIPE):
                self._complain(error.errno, "cannot answer the kernel: %s", error)

    def notify_poll(self, kh: int) -> None:
        """Wake whoever polls: the kernel then asks `poll` again."""
        size = wire.OUT_HEADER.size + wire.POLL_WAKEUP.size
        header = wire.OUT_HEADER.pack(size, wire.NOTIFY_POLL, 0)
        self._send([header, wire.POLL_WAKEUP.pack(kh)])

    def poll_handle(self, kh: int) -> PollHandle:
        """Make the handle that `poll` is given."""
        return PollHandle(self.notify_poll, kh)

    # --- reading and writing --------------------------------------------------------------

    def _on_read(self, unique: int, node: int, size: int) -> None:
        if size < wire.IN_HEADER.size + wire.READ_IN.size:
            return self._malformed(unique, Opcode.READ)
        fh, offset, wanted, _, _, flags, _ = wire.READ_IN.unpack_from(self._buffer, 40)
        if self._read_nowait is None:
            return self._start_read(unique, fh, offset, wanted)
        try:
            self._reply_data(unique, self._read_nowait(fh, wanted, flags))
        except trio.WouldBlock:
            if flags & os.O_NONBLOCK:
                self._reply_error(unique, errno.EAGAIN)
            elif offset:
                self._reply(unique)  # the rest of one long call: it ends here
            else:
                self._start_read(unique, fh, offset, wanted)
        except FUSEError as error:
            self._reply_error(unique, error.errno)
        except Exception:
            self._failed(unique, Opcode.READ)

    def _on_write(self, unique: int, node: int, size: int) -> None:
        start = wire.IN_HEADER.size + wire.WRITE_IN.size
        if size < start:
            return self._malformed(unique, Opcode.WRITE)
        fh, offset, wanted, _, _, flags, _ = wire.WRITE_IN.unpack_from(self._buffer, 40)
        data = self._view[start : start + min(wanted, size - start)]
        if self._write_nowait is None:
            return self._start_write(unique, fh, offset, data)
        try:
            self._reply_written(unique, self._write_nowait(fh, data, flags))
        except trio.WouldBlock:
            if flags & os.O_NONBLOCK or offset:
                self._reply_error(unique, errno.EAGAIN)  # of a long call: the kernel ends it here
            else:
                self._start_write(unique, fh, offset, data)
        except FUSEError as error:
            self._reply_error(unique, error.errno)
        except Exception:
            self._failed(unique, Opcode.WRITE)

    def _start_read(self, unique: int, fh: int, offset: int, size: int) -> None:
        async def read() -> None:
            data = await self.operations.read(pyfuse3.FileHandleT(fh), offset, size)
            self._reply(unique, data)

        self._start(unique, Opcode.READ, read)

    def _start_write(self, unique: int, fh: int, offset: int, data: memoryview) -> None:
        kept = bytes(data)  # the request's buffer is for the next one

        async def write() -> None:
            taken = await self.operations.write(pyfuse3.FileHandleT(fh), offset, kept)
            self._reply_written(unique, taken)

        self._start(unique, Opcode.WRITE, write)

    # --- everything else ------------------------------------------------------------------

    async def _dispatch(
        self, opcode: int, unique: int, node: int, context: RequestContext, size: int
    ) -> None:
        if opcode == Opcode.INTERRUPT:
            return self._on_interrupt(size)
        if opcode == Opcode.INIT:
            return self._on_init(unique, size)
        handler = HANDLERS.get(opcode)
        if handler is None:
            return self._reply_error(unique, errno.ENOSYS)
        body = bytes(self._view[wire.IN_HEADER.size : size])
        request = Request(self, opcode, unique, node, context, body)

        async def answer() -> None:
            reply = await handler.answer(request)
            if reply is not NO_REPLY:
                self._reply(unique, reply)

        if handler.name in self._prompt:
            await self._answer(unique, opcode, answer)
        else:
            self._start(unique, opcode, answer)

    def _start(self, unique: int, opcode: int, answer: Any) -> None:
        scope = self._scopes[unique] = trio.CancelScope()

        async def task() -> None:
            try:
                with scope:
                    await self._answer(unique, opcode, answer)
            finally:
                del self._scopes[unique]

        self._nursery.start_soon(task)

    async def _answer(self, unique: int, opcode: int, answer: Any) -> None:
        try:
            await answer()
        except FUSEError as error:
            self._reply_error(unique, error.errno)
        except trio.Cancelled:
            self._reply_error(unique, errno.EINTR)
            raise
        except ValueError:
            self._malformed(unique, opcode)
        except Exception:
            self._failed(unique, opcode)

    def _on_interrupt(self, size: int) -> None:
        if size >= wire.IN_HEADER.size + wire.INTERRUPT_IN.size:
            (unique,) = wire.INTERRUPT_IN.unpack_from(self._buffer, wire.IN_HEADER.size)
            scope = self._scopes.get(unique)
            if scope is not None:
                scope.cancel()

    def _on_init(self, unique: int, size: int) -> None:
        if size < wire.IN_HEADER.size + wire.INIT_IN.size:
            return self._malformed(unique, Opcode.INIT)
        fields = wire.INIT_IN.unpack_from(self._buffer, wire.IN_HEADER.size)
        major, minor, readahead, flags = fields
        if major < wire.KERNEL_VERSION:
            return self._reply_error(unique, errno.EPROTO)
        self._reply(unique, wire.init_reply(minor, readahead, flags))
        self.operations.init()
        self._started.set()

    # --- what should not happen -----------------------------------------------------------

    def _malformed(self, unique: int, opcode: int) -> None:
        self._complain(opcode, "a malformed request (opcode %d) was refused", opcode)
        self._reply_error(unique, errno.EIO)

    def _failed(self, unique: int, opcode: int) -> None:
        if opcode not in self._complained:
            self._complained.add(opcode)
            log.exception("the handler of opcode %d failed", opcode)
        self._reply_error(unique, errno.EIO)

    def _complain(self, kind: Any, message: str, *arguments: object) -> None:
        if kind not in self._complained:
            self._complained.add(kind)
            log.warning(message, *arguments)

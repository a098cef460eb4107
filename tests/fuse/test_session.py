"""The session against a scripted kernel."""

from __future__ import annotations

import errno
import logging
import os
import struct
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError

from tests.support.waiting import until
from vconfs.fuse import MountError, RequestContext, Session

from . import kernel as k
from .kernel import Kernel, Quiet, connect, connected, read_body, write_body

# --- INIT ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("theirs", "ours"), [(45, 38), (38, 38), (31, 31)])
async def test_init_agrees_on_the_lower_minor(theirs: int, ours: int) -> None:
    async with connect(Quiet()) as kernel:
        reply = await kernel.ask(k.INIT, k.init_body(theirs))
        major, minor, readahead, flags = struct.unpack_from("<IIII", reply.body)
        assert (len(reply.body), major, minor, readahead) == (64, 7, ours, 131072)
        assert struct.unpack_from("<I", reply.body, 20) == (1 << 20,)  # max_write
        assert struct.unpack_from("<H", reply.body, 28) == (256,)  # max_pages
        # ASYNC_READ ATOMIC_O_TRUNC BIG_WRITES DO_READDIRPLUS PARALLEL_DIROPS MAX_PAGES, and
        # EXPORT_SUPPORT, which pyfuse3.Operations asks for by supports_dot_lookup
        wanted = sum(1 << bit for bit in (0, 3, 5, 13, 18, 22, 4))
        assert flags == wanted


async def test_init_wants_nothing_that_is_not_offered() -> None:
    async with connect(Quiet()) as kernel:
        reply = await kernel.ask(k.INIT, k.init_body(flags=1 << 5))
        assert struct.unpack_from("<I", reply.body, 12) == (1 << 5,)


async def test_init_wants_what_the_operations_say_they_can() -> None:
    operations = Quiet()
    operations.enable_acl = operations.enable_writeback_cache = True
    async with connect(operations) as kernel:
        reply = await kernel.ask(k.INIT, k.init_body())
        assert struct.unpack_from("<I", reply.body, 12)[0] & (1 << 16 | 1 << 20) == 0x110000


async def test_run_has_started_when_init_is_answered() -> None:
    operations = Quiet()
    operations.init = lambda: operations.log.append("init")  # type: ignore[method-assign]
    async with connect(operations) as kernel:
        await trio.testing.wait_all_tasks_blocked()
        assert not kernel.started.is_set()
        await kernel.send(k.INIT, k.init_body())
        await kernel.started.wait()
        assert operations.log == ["init"]


# --- reads and writes at once -------------------------------------------------------------


async def test_read_at_once() -> None:
    operations = Quiet()
    async with connected(operations) as kernel:
        operations.data = b"hello"
        assert (await kernel.ask(k.READ, read_body(size=3))).body == b"hel"
        assert (await kernel.ask(k.READ, read_body(size=3))).body == b"lo"


@pytest.mark.parametrize("count", [0, 1, 2, 1022, 1023, 1024, 5000])
async def test_pieces_are_gathered_however_many(count: int) -> None:
    pieces = [b"%d," % number for number in range(count)]

    class Pieces(Quiet):
        def read_nowait(self, fh: int, size: int, flags: int) -> Any:
            return pieces

    async with connected(Pieces()) as kernel:
        assert (await kernel.ask(k.READ, read_body(size=1 << 20))).body == b"".join(pieces)


async def test_pieces_are_given_back_when_the_kernel_has_them() -> None:
    class Lends(Quiet):
        """Lends its memory for each read, and spoils it when it gets it back."""

        memory = bytearray()
        waiting = trio.Event()

        def read_nowait(self, fh: int, size: int, flags: int) -> Any:
            if not self.memory:
                raise trio.WouldBlock
            return [self.memory[:2], memoryview(self.memory)[2:]]

        async def read_pieces(self, fh: int, size: int) -> Any:
            self.waiting.set()
            while not self.memory:
                await trio.lowlevel.checkpoint()
            return self.read_nowait(fh, size, 0)

        def read_done(self, fh: int) -> None:
            self.log.append(("done", fh))
            self.memory[:] = b"!" * len(self.memory)

    operations = Lends()
    async with connected(operations) as kernel, trio.open_nursery() as nursery:
        operations.log.clear()

        async def read() -> None:
            assert (await kernel.ask(k.READ, read_body(fh=7))).body == b"waited"

        nursery.start_soon(read)
        await operations.waiting.wait()
        assert operations.log == []
        operations.memory[:] = b"waited"
        await until(lambda: operations.log == [("done", 7)])
        operations.memory[:] = b"prompt"
        assert (await kernel.ask(k.READ, read_body(fh=8))).body == b"prompt"
        assert operations.log == [("done", 7), ("done", 8)]


async def test_write_at_once_and_its_arguments() -> None:
    calls: list[Any] = []

    class Writes(Quiet):
        def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
            calls.append((fh, bytes(data), flags))
            return 2

    async with connected(Writes()) as kernel:
        reply = await kernel.ask(k.WRITE, write_body(b"data", fh=7, flags=os.O_RDWR))
        assert struct.unpack("<II", reply.body) == (2, 0)
        assert calls == [(7, b"data", os.O_RDWR)]


@pytest.mark.parametrize(("offset", "flags"), [(0, os.O_NONBLOCK), (1 << 20, os.O_NONBLOCK)])
async def test_a_nonblocking_read_that_would_block_is_eagain(offset: int, flags: int) -> None:
    async with connected(Quiet()) as kernel:
        reply = await kernel.ask(k.READ, read_body(offset=offset, flags=flags))
        assert (reply.error, reply.body) == (errno.EAGAIN, b"")


async def test_the_rest_of_a_long_read_is_empty_instead_of_waiting() -> None:
    async with connected(Quiet()) as kernel:
        reply = await kernel.ask(k.READ, read_body(offset=1 << 20))
        assert (reply.error, reply.body) == (0, b"")


class Throttled(Quiet):
    """Writes wait until `changed`."""

    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        raise trio.WouldBlock

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        await self.changed.wait()
        self.log.append(buf)
        return len(buf)


@pytest.mark.parametrize(("offset", "flags"), [(0, os.O_NONBLOCK), (1 << 20, 0)])
async def test_a_write_that_must_not_wait_is_eagain(offset: int, flags: int) -> None:
    async with connected(Throttled()) as kernel:
        reply = await kernel.ask(k.WRITE, write_body(b"x", offset=offset, flags=flags))
        assert reply.error == errno.EAGAIN


async def test_an_appending_write_waits_whatever_its_offset() -> None:
    # The kernel gives each write an offset then: the size that it believes the file has.
    operations = Throttled()
    async with connected(operations) as kernel:
        unique = await kernel.send(k.WRITE, write_body(b"x", offset=1 << 20, flags=os.O_APPEND))
        await trio.testing.wait_all_tasks_blocked()
        operations.changed.set()
        reply = await kernel.receive()
        assert (reply.unique, struct.unpack("<II", reply.body)) == (unique, (1, 0))
        reply = await kernel.ask(
            k.WRITE, write_body(b"x", offset=1, flags=os.O_APPEND | os.O_NONBLOCK)
        )
        assert reply.error == errno.EAGAIN


async def test_a_write_that_waits_keeps_its_bytes() -> None:
    operations = Throttled()
    async with connected(operations) as kernel:
        unique = await kernel.send(k.WRITE, write_body(b"precious"))
        await kernel.ask(k.READ, write_body(b"overwrites", offset=1))  # in the same buffer
        operations.changed.set()
        reply = await kernel.receive()
        assert (reply.unique, struct.unpack("<II", reply.body)) == (unique, (8, 0))
        assert operations.log == [b"precious"]


async def test_operations_without_nowait_are_awaited() -> None:
    class Plain(pyfuse3.Operations):
        async def read(self, fh: int, off: int, size: int) -> bytes:
            await trio.lowlevel.checkpoint()
            return b"%d %d %d" % (fh, off, size)

        async def write(self, fh: int, off: int, buf: bytes) -> int:
            await trio.lowlevel.checkpoint()
            return len(buf) - 1

    async with connected(Plain()) as kernel:
        assert (await kernel.ask(k.READ, read_body(3, 4, 5))).body == b"3 4 5"
        assert (await kernel.ask(k.WRITE, write_body(b"abc"))).body == struct.pack("<II", 2, 0)


# --- waiting and interrupts ---------------------------------------------------------------


async def test_a_read_that_waits_is_answered_when_data_comes() -> None:
    operations = Quiet()
    async with connected(operations) as kernel:
        unique = await kernel.send(k.READ, read_body())
        await kernel.assert_silent()
        operations.data = b"late"
        operations.changed.set()
        assert await kernel.receive() == k.Reply(unique, 0, b"late")


async def test_an_interrupt_ends_a_read_that_waits() -> None:
    operations = Quiet()
    async with connected(operations) as kernel:
        unique = await kernel.send(k.READ, read_body())
        await trio.testing.wait_all_tasks_blocked()
        await kernel.interrupt(unique)
        assert await kernel.receive() == k.Reply(unique, errno.EINTR, b"")
        await kernel.assert_silent()


async def test_an_interrupt_before_the_tasks_first_step() -> None:
    async with connected(Quiet()) as kernel:
        # Both are there before the session reads either: the socket takes them without a
        # checkpoint between.
        kernel.socket._sock.send(struct.pack("<IIQQIIII", 80, 15, 8, 1, 0, 0, 0, 0) + read_body())  # type: ignore[attr-defined]
        await kernel.interrupt(8)
        assert await kernel.receive() == k.Reply(8, errno.EINTR, b"")
        await kernel.assert_silent()


async def test_an_interrupt_after_the_answer_or_of_nothing_is_ignored() -> None:
    operations = Quiet()
    operations.data = b"x"
    async with connected(operations) as kernel:
        reply = await kernel.ask(k.READ, read_body())
        await kernel.interrupt(reply.unique)
        await kernel.interrupt(0xFFFF0)
        await kernel.assert_silent()
        operations.data = b"y"
        assert (await kernel.ask(k.READ, read_body())).body == b"y"


async def test_an_interrupt_hits_only_its_request() -> None:
    operations = Quiet()
    async with connected(operations) as kernel:
        first = await kernel.send(k.READ, read_body())
        second = await kernel.send(k.READ, read_body())
        await trio.testing.wait_all_tasks_blocked()
        await kernel.interrupt(first)
        assert (await kernel.receive()).unique == first
        operations.data = b"z"
        operations.changed.set()
        assert await kernel.receive() == k.Reply(second, 0, b"z")


async def test_an_interrupt_of_a_handler_with_a_nursery_of_its_own() -> None:
    class Nested(Quiet):
        async def getattr(self, inode: int, ctx: Any) -> Any:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)

    async with connected(Nested()) as kernel:
        unique = await kernel.send(k.GETATTR, bytes(16))
        await trio.testing.wait_all_tasks_blocked()
        await kernel.interrupt(unique)
        assert await kernel.receive() == k.Reply(unique, errno.EINTR, b"")


async def test_cancelling_run_answers_everything_that_waits() -> None:
    async with connected(Quiet()) as kernel:
        waiting = {await kernel.send(k.READ, read_body()) for _ in range(50)}
        await trio.testing.wait_all_tasks_blocked()
        kernel.session._nursery.cancel_scope.cancel()
        for _ in range(50):
            reply = await kernel.receive()
            assert reply.error == errno.EINTR
            waiting.remove(reply.unique)


async def test_a_notification_after_the_end_goes_nowhere() -> None:
    operations = Quiet()
    async with connected(operations) as kernel:
        handle = kernel.session.poll_handle(5)
        kernel.session._nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        handle.notify()
        await kernel.assert_silent()


async def test_settled_is_when_nothing_waits_for_its_answer() -> None:
    operations = Quiet()
    async with connected(operations) as kernel:
        await kernel.session.settle(60)
        unique = await kernel.send(k.READ, read_body())
        await trio.testing.wait_all_tasks_blocked()
        await kernel.session.settle(0)  # it gives up
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.session.settle, 60)
            await trio.testing.wait_all_tasks_blocked()
            operations.changed.set()
        assert (await kernel.receive()).unique == unique


# --- order --------------------------------------------------------------------------------


async def test_prompt_handlers_run_in_order_without_a_task() -> None:
    order: list[str] = []

    class Ordered(Quiet):
        async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
            order.append(f"open {inode} {flags}")
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), nonseekable=True, direct_io=True)

        async def getattr(self, inode: int, ctx: Any) -> Any:
            order.append("getattr")
            raise FUSEError(errno.EACCES)

        async def release(self, fh: int) -> None:
            order.append(f"release {fh}")

    async with connected(Ordered()) as kernel:
        for opcode, body in (
            (k.GETATTR, bytes(16)),
            (k.OPEN, struct.pack("<II", os.O_TRUNC, 0)),
            (k.RELEASE, struct.pack("<QIIQ", 5, 0, 0, 0)),
        ):
            head = struct.pack("<IIQQIIII", 40 + len(body), opcode, 8, 5, 0, 0, 0, 0)
            kernel.socket._sock.send(head + body)  # type: ignore[attr-defined]
        opened, released, refused = [await kernel.receive() for _ in range(3)]
        assert order == [f"open 5 {os.O_TRUNC}", "release 5", "getattr"]
        # DIRECT_IO | KEEP_CACHE (which pyfuse3 has on by default) | NONSEEKABLE | STREAM
        assert struct.unpack("<QII", opened.body) == (5, 1 | 2 | 4 | 16, 0)
        assert (released.error, refused.error) == (0, errno.EACCES)


async def test_other_tasks_have_their_turn_while_requests_flood() -> None:
    operations = Quiet()
    operations.data = bytes(1000)
    left: list[int] = []

    async def other() -> None:
        while operations.data:
            left.append(len(operations.data))
            await trio.lowlevel.checkpoint()

    async with connected(operations) as kernel, trio.open_nursery() as nursery:
        for unique in range(200):  # all are there before the session reads the first
            head = struct.pack("<IIQQIIII", 80, k.READ, unique, 1, 0, 0, 0, 0)
            kernel.socket._sock.send(head + read_body(size=1))  # type: ignore[attr-defined]
        nursery.start_soon(other)
        for _ in range(200):
            await kernel.receive()
        operations.data = b""
    assert any(800 < count < 1000 for count in left)


async def test_the_context_names_the_requester() -> None:
    contexts: list[RequestContext] = []

    class Who(Quiet):
        async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
            contexts.append(ctx)
            raise FUSEError(errno.ENOENT)

    async with connected(Who()) as kernel:
        assert (await kernel.ask(k.LOOKUP, b"name\0")).error == errno.ENOENT
        assert contexts == [RequestContext(uid=10, gid=20, pid=30)]


# --- poll ---------------------------------------------------------------------------------


async def test_poll_has_a_handle_only_if_the_kernel_wants_a_notification() -> None:
    handles: list[Any] = []

    class Polls(Quiet):
        async def poll(self, inode: int, fh: int, handle: Any, ctx: Any) -> int:
            handles.append(handle)
            return 5

    async with connected(Polls()) as kernel:
        reply = await kernel.ask(k.POLL, struct.pack("<QQII", 3, 99, 0, 1))
        assert struct.unpack("<II", reply.body) == (5, 0)
        await kernel.ask(k.POLL, struct.pack("<QQII", 3, 99, 1, 1))
        assert handles[0] is None
        handles[1].notify()
        assert await kernel.receive() == k.Reply(0, 1, struct.pack("<Q", 99))


# --- requests that are taken back ---------------------------------------------------------


async def test_a_request_that_vanishes_while_it_is_read_does_not_end_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stock, failures = os.readv, [errno.ENOENT] * 3

    def readv(device: int, buffers: Any) -> int:
        if failures:
            raise OSError(failures.pop(), "taken back")
        return stock(device, buffers)

    monkeypatch.setattr(os, "readv", readv)
    async with connected(Quiet()):
        assert not failures


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ECONNABORTED])
async def test_a_device_without_a_mount_is_the_end(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def readv(device: int, buffers: Any) -> int:
        raise OSError(code, "unmounted")

    monkeypatch.setattr(os, "readv", readv)
    with pytest.raises(MountError, match="unmounted before"):
        await Session(Quiet(), 0).run()


async def test_an_answer_without_a_waiter_is_dropped_silently(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stock, failures = os.writev, [errno.ENOENT]

    def writev(device: int, buffers: Any) -> int:
        if failures:
            raise OSError(failures.pop(), "taken back")
        return stock(device, buffers)

    operations = Quiet()
    operations.data = b"ab"
    async with connected(operations) as kernel:
        monkeypatch.setattr(os, "writev", writev)
        await kernel.send(k.READ, read_body(size=1))
        assert (await kernel.ask(k.READ, read_body(size=1))).body == b"b"
        assert not caplog.records


async def test_an_answer_that_the_kernel_refuses_becomes_eio(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stock, failures = os.writev, [errno.EINVAL] * 2

    def writev(device: int, buffers: Any) -> int:
        if len(buffers) > 1 and failures:
            raise OSError(failures.pop(), "refused")
        return stock(device, buffers)

    operations = Quiet()
    operations.data = b"abc"
    async with connected(operations) as kernel:
        monkeypatch.setattr(os, "writev", writev)
        for _ in range(2):
            assert (await kernel.ask(k.READ, read_body(size=1))).error == errno.EIO
        assert len(caplog.records) == 1
        assert (await kernel.ask(k.READ, read_body(size=1))).body == b"c"


# --- what should not happen ---------------------------------------------------------------


async def alive(kernel: Kernel) -> bool:
    """True if the session still answers."""
    return (await kernel.ask(k.LOOKUP, b"x\0")).error == errno.ENOSYS


#: For each opcode that has a body, one that is too short.
SHORT = [
    *((opcode, bytes(7)) for opcode in (14, 15, 16, 18, 20, 21, 22, 23, 25, 28, 30, 34, 40)),
    *((opcode, bytes(3)) for opcode in (4, 8, 9, 12, 13, 26, 29, 35, 44, 45)),
    *((opcode, b"no NUL") for opcode in (1, 6, 10, 11, 24)),
    (6, b"one\0two"),
    (12, bytes(8) + b"old\0new"),
    (16, write_body(b"data")[:-1]),  # less than it says
    (16, write_body(b"data") + b"more"),
    (21, struct.pack("<II", 9, 0) + b"name\0short"),
    (35, bytes(16) + b"no NUL"),
]


@pytest.mark.parametrize(("opcode", "body"), SHORT)
async def test_a_short_request_is_refused_and_logged_once(
    opcode: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(Quiet()) as kernel:
        for _ in range(2):
            reply = await kernel.ask(opcode, body)
            assert (reply.error, reply.body) == (errno.EIO, b"")
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert f"opcode {opcode})" in caplog.text
        assert await alive(kernel)


@pytest.mark.parametrize("opcode", [2, 36, 42])
@pytest.mark.expect_log("was refused")
async def test_a_short_request_without_a_reply_has_none(opcode: int) -> None:
    async with connected(Quiet()) as kernel:
        await kernel.send(opcode, b"x")
        await kernel.assert_silent()
        assert await alive(kernel)


@pytest.mark.parametrize("size", [1, 16, 39])
async def test_less_than_a_header_is_dropped(size: int, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(Quiet()) as kernel:
        await kernel.send_bytes(bytes(size))
        await kernel.assert_silent()
        assert f"{size} bytes" in caplog.text
        assert await alive(kernel)


@pytest.mark.parametrize("opcode", [0, 7, 31, 39, 43, 46, 50, 4096, 0xFFFFFFFF])
async def test_an_unknown_opcode_is_enosys(opcode: int) -> None:
    async with connected(Quiet()) as kernel:
        assert (await kernel.ask(opcode, bytes(100))).error == errno.ENOSYS


@pytest.mark.parametrize("code", [0, 512, 524])
async def test_an_errno_that_the_kernel_refuses_becomes_eio(code: int) -> None:
    class Odd(Quiet):
        async def getattr(self, inode: int, ctx: Any) -> Any:
            raise FUSEError(code)

    async with connected(Odd()) as kernel:
        assert (await kernel.ask(k.GETATTR, bytes(16))).error == errno.EIO


class Broken(Quiet):
    """Every handler has a bug."""

    def __init__(self, bug: Exception) -> None:
        super().__init__()
        self.bug = bug

    def read_nowait(self, fh: int, size: int, flags: int) -> Any:
        raise self.bug

    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        raise self.bug

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        raise self.bug

    async def getattr(self, inode: int, ctx: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise self.bug


@pytest.mark.parametrize("bug", [ValueError("bug"), KeyError("bug"), struct.error("bug")])
@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (k.READ, read_body()),
        (k.WRITE, write_body(b"x")),
        (k.LOOKUP, b"name\0"),
        (k.GETATTR, bytes(16)),
    ],
)
async def test_a_bug_in_a_handler_is_eio_and_its_traceback_is_logged_once(
    opcode: int, body: bytes, bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(Broken(bug)) as kernel:
        for _ in range(3):
            assert (await kernel.ask(opcode, body)).error == errno.EIO
        (record,) = caplog.records
        assert record.exc_info is not None
        assert record.exc_info[1] is bug


@pytest.mark.parametrize("answer", [None, "text", 5, [None], object()])
@pytest.mark.expect_log("the handler of")
async def test_nonsense_from_a_handler_is_eio(answer: Any) -> None:
    class Nonsense(Quiet):
        def read_nowait(self, fh: int, size: int, flags: int) -> Any:
            return answer

        def write_nowait(self, fh: int, data: memoryview, flags: int) -> Any:
            return answer if answer != 5 else None

        async def getattr(self, inode: int, ctx: Any) -> Any:
            return answer

        async def readlink(self, inode: int, ctx: Any) -> Any:
            return answer if answer != 5 else None

    async with connected(Nonsense()) as kernel:
        for opcode, body in (
            (k.READ, read_body()),
            (k.WRITE, write_body(b"x")),
            (k.GETATTR, bytes(16)),
            (5, b""),
        ):
            assert (await kernel.ask(opcode, body)).error == errno.EIO, opcode


async def test_a_bug_in_forget_is_logged_and_not_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Forgets(Quiet):
        async def forget(self, inode_list: Any) -> None:
            self.log.append(inode_list)
            if len(inode_list) == 1:
                raise KeyError("bug")

    operations = Forgets()
    async with connected(operations) as kernel:
        await kernel.send(k.FORGET, struct.pack("<Q", 3), node=9)
        await kernel.send(42, struct.pack("<II4Q", 2, 0, 7, 1, 8, 2))
        await kernel.assert_silent()
        assert sorted(operations.log) == [[(7, 1), (8, 2)], [(9, 3)]]
        assert "FORGET" in caplog.text


async def test_pyfuse3s_own_readdir_reply_takes_our_token_while_we_run() -> None:
    class Lists(Quiet):
        async def readdir(self, fh: int, start_id: int, token: Any) -> None:
            attr = pyfuse3.EntryAttributes()
            attr.st_ino = pyfuse3.InodeT(7)
            attr.st_mode = pyfuse3.ModeT(0o100644)
            while pyfuse3.readdir_reply(token, pyfuse3.FileNameT(b"four"), attr, start_id + 1):
                start_id += 1

    stock = pyfuse3.readdir_reply
    async with connected(Lists()) as kernel, connected(Lists()) as other:
        other.session._nursery.cancel_scope.cancel()  # one session more or less: no matter
        await trio.testing.wait_all_tasks_blocked()
        plain = await kernel.ask(28, read_body(1, 0, 100))
        assert plain.body == b"".join(
            struct.pack("<QQII", 7, next_id, 4, 8) + b"four\0\0\0\0" for next_id in (1, 2, 3)
        )
        plus = await kernel.ask(44, read_body(1, 0, 320))
        assert len(plus.body) == 2 * (128 + 32)
        assert struct.unpack_from("<Q", plus.body) == (7,)
        assert plus.body[128:160] == plain.body[:32]
    assert pyfuse3.readdir_reply is stock

"""pyfuse3's notifications act on the session whose handler calls them, and reach the kernel."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT

from tests.support.threads import in_thread

from . import kernel as k
from .conftest import Serve, heard, program
from .kernel import Quiet, Reply, connected

FILE = InodeT(2)
DATA = b"hello world\n"


class Calls(Quiet):
    """Operations whose look-ups call a function first."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self.function = function

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        self.function()
        raise FUSEError(errno.ENOENT)


# --- the bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "code", "body"),
    [
        (lambda: pyfuse3.invalidate_inode(InodeT(7)), 2, struct.pack("<Qqq", 7, 0, 0)),
        (
            lambda: pyfuse3.invalidate_inode(InodeT(7), attr_only=True),
            2,
            struct.pack("<Qqq", 7, -1, 0),
        ),
        (
            lambda: pyfuse3.invalidate_entry(InodeT(1), b"name"),
            3,
            struct.pack("<QII", 1, 4, 0) + b"name\0",
        ),
        (
            lambda: pyfuse3.invalidate_entry(InodeT(1), b"name", deleted=InodeT(9)),
            6,
            struct.pack("<QQII", 1, 9, 4, 0) + b"name\0",
        ),
        (
            lambda: pyfuse3.invalidate_entry_async(InodeT(1), b"name"),
            3,
            struct.pack("<QII", 1, 4, 0) + b"name\0",
        ),
        (
            lambda: pyfuse3.notify_store(InodeT(7), 4096, memoryview(b"data")),  # type: ignore[arg-type]
            4,
            struct.pack("<QQII", 7, 4096, 4, 0) + b"data",
        ),
    ],
)
async def test_a_notification_is_what_the_kernel_reads(
    function: Callable[[], object], code: int, body: bytes
) -> None:
    stock = pyfuse3.invalidate_inode
    async with connected(Calls(function)) as kernel:
        unique = await kernel.send(k.LOOKUP, b"x\0")
        replies = [await kernel.receive() for _ in range(2)]
        assert Reply(0, code, body) in replies
        assert unique in [reply.unique for reply in replies]
    assert pyfuse3.invalidate_inode is stock


# --- which session ------------------------------------------------------------------------


async def test_a_handler_reaches_its_own_session_among_several() -> None:
    def notify() -> None:
        pyfuse3.invalidate_inode(InodeT(7))

    async with connected(Calls(notify)) as one, connected(Calls(notify)) as other:
        for kernel, idle in ((one, other), (other, one)):
            await kernel.send(k.LOOKUP, b"x\0")
            assert (await kernel.receive()).error == 2
            assert (await kernel.receive()).error == errno.ENOENT
            await idle.assert_silent()
        with pytest.raises(RuntimeError, match="several sessions run"):
            notify()


async def test_a_thread_and_a_task_of_a_handler_reach_its_session() -> None:
    class Helped(Quiet):
        async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
            await trio.to_thread.run_sync(pyfuse3.invalidate_inode, InodeT(7))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, lambda: pyfuse3.invalidate_inode(InodeT(8)))
            raise FUSEError(errno.ENOENT)

    async with connected(Helped()) as kernel, connected(Quiet()):
        await kernel.send(k.LOOKUP, b"x\0")
        for inode in (7, 8):
            assert await kernel.receive() == Reply(0, 2, struct.pack("<Qqq", inode, 0, 0))


# --- what fails, and the end --------------------------------------------------------------


async def test_what_the_kernel_refuses_is_an_error_or_a_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(Quiet()) as kernel:
        notifier, stock = kernel.session.notifier, os.writev

        def writev(fd: int, parts: Any) -> int:
            name = bytes(parts[-2])
            if name in (b"unknown", b"gone"):
                raise OSError(errno.ENOENT, "it has none")
            return stock(fd, parts)

        monkeypatch.setattr(os, "writev", writev)
        with pytest.raises(FileNotFoundError):
            pyfuse3.invalidate_entry(InodeT(1), b"unknown")
        pyfuse3.invalidate_entry_async(InodeT(1), b"gone", ignore_enoent=True)
        pyfuse3.invalidate_entry_async(InodeT(1), b"unknown")
        pyfuse3.invalidate_entry_async(InodeT(1), b"known")
        assert (await kernel.receive()).body.endswith(b"known\0")
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert (
            record.getMessage()
            == "the kernel did not forget b'unknown' in directory 1: it has none"
        )
    with pytest.raises(OSError, match="the session has ended"):
        notifier.invalidate_inode(7)
    threads = [thread for thread in threading.enumerate() if thread.name == "fuse-notify"]
    for thread in threads:
        await trio.to_thread.run_sync(thread.join, 5)
        assert not thread.is_alive()


async def test_terminate_ends_the_session_after_the_answer() -> None:
    with trio.fail_after(5):
        async with connected(Calls(lambda: pyfuse3.terminate())) as kernel:
            assert (await kernel.ask(k.LOOKUP, b"x\0")).error == errno.ENOENT
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(OSError, match="the session has ended"):
                kernel.session.notifier.invalidate_inode(7)


# --- the kernel ---------------------------------------------------------------------------


class Message(pyfuse3.Operations):
    """A folder with one file; the kernel may keep all that it learns for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups = self.reads = 0

    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: Any) -> EntryAttributes:
        if name != b"message":
            raise FUSEError(errno.ENOENT)
        self.lookups += 1
        return await self.getattr(FILE, ctx)

    async def getattr(self, inode: InodeT, ctx: Any) -> EntryAttributes:
        attr = EntryAttributes()
        attr.st_ino = inode
        attr.st_mode = pyfuse3.ModeT(
            stat.S_IFREG | 0o644 if inode == FILE else stat.S_IFDIR | 0o755
        )
        attr.st_size = len(DATA)
        attr.entry_timeout = attr.attr_timeout = 1e9
        return attr

    async def open(self, inode: InodeT, flags: int, ctx: Any) -> FileInfo:
        return FileInfo(fh=FileHandleT(inode))

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        self.reads += 1
        return DATA[off : off + size]

    async def setxattr(self, inode: InodeT, name: bytes, value: bytes, ctx: Any) -> None:
        # The kernel holds the lock of the directory: only the other thread can do it.
        pyfuse3.invalidate_entry_async(inode, name)
        await trio.sleep(0)


#: Does what each line says, on a file that stays open, and answers with the result.
CLIENT = """
import os, sys
file = open(sys.argv[1], "rb", buffering=0)
print("open", flush=True)
for line in sys.stdin:
    if line == "read\\n":
        file.seek(0)
        print(file.read(), flush=True)
    elif line == "stat\\n":
        print(os.stat(sys.argv[1]).st_ino, flush=True)
    else:
        os.setxattr(os.path.dirname(sys.argv[1]), "message", b"forget it")
        print("set", flush=True)
"""


async def test_the_kernel_forgets_and_stores_what_it_is_told_to(serve: Serve) -> None:
    operations = Message()
    with trio.fail_after(20):
        async with serve(operations) as served:
            command = (sys.executable, "-c", CLIENT, str(served.path / "message"))
            async with program(*command) as client:

                async def ask(word: bytes) -> bytes:
                    assert client.stdin is not None
                    await client.stdin.send_all(word + b"\n")
                    return (await heard(client)).strip()

                assert await heard(client) == b"open\n"
                pyfuse3.notify_store(FILE, offset=0, data=DATA)
                hello = repr(DATA).encode()
                assert (await ask(b"read"), operations.reads) == (hello, 0)
                pyfuse3.invalidate_inode(FILE)
                assert (await ask(b"read"), operations.reads) == (hello, 1)
                assert (await ask(b"read"), operations.reads) == (hello, 1)
                await ask(b"stat")
                known = operations.lookups
                await ask(b"stat")
                assert operations.lookups == known
                pyfuse3.invalidate_entry(pyfuse3.ROOT_INODE, b"message")
                assert (await ask(b"stat"), operations.lookups) == (b"2", known + 1)
                assert await ask(b"forget") == b"set"
                while operations.lookups == known + 1:
                    await ask(b"stat")

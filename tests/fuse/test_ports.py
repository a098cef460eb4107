"""What programs see of files that the session serves, on real mounts."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import trio
from pyfuse3 import FileHandleT

from vconfs import fuse

from .conftest import Serve, heard, program
from .ports import Port, Ports

MIB = 1 << 20


# --- signals ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_alone_ends_a_blocked_reader_and_loses_no_byte(
    serve: Serve, number: signal.Signals
) -> None:
    async with serve() as it:
        port: Port = it.operations.ports[0]
        async with program("cat", str(it.file)) as cat:
            await port.blocked()
            cat.send_signal(number)
            assert await cat.wait() == -number
        await port.blocked(0)
        port.put(b"kept")
        assert await it.shell("head -c 4 $P") == "kept"


async def test_a_blocked_read_is_eintr_for_a_program_with_a_handler(serve: Serve) -> None:
    script = """
import ctypes, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDWR)
print(libc.read(fd, ctypes.create_string_buffer(1), 1), ctypes.get_errno(), flush=True)
"""
    async with serve() as it:
        async with program(sys.executable, "-I", "-c", script, str(it.file)) as reader:
            await it.operations.ports[0].blocked()
            reader.send_signal(signal.SIGUSR1)
            assert await heard(reader) == b"-1 %d\n" % errno.EINTR


async def test_a_signal_ends_a_blocked_writer(serve: Serve) -> None:
    async with serve() as it:
        port: Port = it.operations.ports[0]
        port.room = 0
        async with program("bash", "-c", 'echo lost > "$0"', str(it.file)) as writer:
            await port.blocked()
            writer.send_signal(signal.SIGTERM)
            assert await writer.wait() == -signal.SIGTERM
        port.room = 100
        port.put(b"other")
        assert await it.shell("head -c 5 $P") == "other"


# --- flags and descriptors ----------------------------------------------------------------


async def test_o_nonblock_counts_at_each_call(serve: Serve) -> None:
    script = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
def attempt(call):
    try: print(call())
    except OSError as error: print(error.errno)
fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
attempt(lambda: os.read(fd, 9))
attempt(lambda: os.write(fd, b'1'))
attempt(lambda: os.write(fd, b'2'))
attempt(lambda: os.read(fd, 9))
fcntl.fcntl(fd, fcntl.F_SETFL, 0)
print('waits', flush=True)
attempt(lambda: os.read(fd, 9))
"""
    async with serve() as it:
        port: Port = it.operations.ports[0]
        port.room = 1
        async with trio.open_nursery() as nursery:

            async def feed() -> None:
                await port.blocked()
                port.put(b"fed")

            nursery.start_soon(feed)
            output = await it.script(script)
        again = str(errno.EAGAIN)
        assert output.split() == [again, "1", again, "b'1'", "waits", "b'fed'"]


async def test_reader_and_writer_of_one_descriptor_do_not_wait_for_each_other(
    serve: Serve,
) -> None:
    script = """
import os, sys, threading
fd = os.open(sys.argv[1], os.O_RDWR)
reader = threading.Thread(target=lambda: print(os.read(fd, 9)))
reader.start()
sys.stdin.read(1)
os.write(fd, b'echo')
reader.join()
"""
    async with serve() as it:
        async with program(sys.executable, "-I", "-c", script, str(it.file)) as both:
            await it.operations.ports[0].blocked()
            assert both.stdin is not None
            await both.stdin.send_all(b"\n")
            assert await heard(both) == b"b'echo'\n"


async def test_seeking_is_refused(serve: Serve) -> None:
    script = """
import errno, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_TRUNC | os.O_APPEND)
os.ftruncate(fd, 0)
calls = lambda: os.lseek(fd, 0, 0), lambda: os.pread(fd, 1, 0), lambda: os.pwrite(fd, b'x', 0)
for call in calls:
    try: call()
    except OSError as error: print(errno.errorcode[error.errno])
"""
    async with serve() as it:
        assert (await it.script(script)).split() == ["ESPIPE"] * 3


# --- long calls ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, 3 * MIB + 5])
async def test_a_long_read_gives_what_is_there_and_does_not_wait(serve: Serve, size: int) -> None:
    script = """
import hashlib, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
data = os.read(fd, 8 << 20)
print(len(data), hashlib.sha256(data).hexdigest())
"""
    data = os.urandom(size)
    async with serve() as it:
        it.operations.ports[0].data += data
        length, digest = (await it.script(script)).split()
        assert (int(length), digest) == (size, hashlib.sha256(data).hexdigest())


async def test_a_long_write_that_is_not_all_taken_is_short(serve: Serve) -> None:
    script = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
print(os.write(fd, bytes(3 << 20)))
"""
    async with serve() as it:
        port: Port = it.operations.ports[0]
        port.room = MIB
        assert await it.script(script) == str(MIB)
        assert len(port.data) == MIB


async def test_each_appending_write_waits_for_room(serve: Serve) -> None:
    script = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(3):
    print(os.write(fd, b'%d' % number), flush=True)
"""
    async with serve() as it:
        port: Port = it.operations.ports[0]
        port.room = 1
        async with program(sys.executable, "-I", "-c", script, str(it.file)) as writer:
            for number in range(3):
                assert await heard(writer) == b"1\n"
                if number < 2:
                    await port.blocked()
                assert port.data == b"%d" % number
                port.data.clear()
                port.changed()
            assert await writer.wait() == 0


async def test_a_long_appending_write_waits_for_its_rest_and_can_be_interrupted(
    serve: Serve,
) -> None:
    script = """
import mmap, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
print(os.write(fd, mmap.mmap(-1, 3 << 20)))  # aligned to pages: it is sent as 3 times 1 MiB
"""
    async with serve() as it:
        port: Port = it.operations.ports[0]
        port.room = MIB
        async with program(sys.executable, "-I", "-c", script, str(it.file)) as writer:
            await port.blocked()
            os.kill(writer.pid, signal.SIGUSR1)
            assert int(await heard(writer)) == len(port.data) == MIB


# --- poll ---------------------------------------------------------------------------------

WAITERS = {
    "poll": """
poller = select.poll(); poller.register(fd, select.POLLIN)
ask = lambda: [hex(events) for _, events in poller.poll()]
""",
    "select": "ask = lambda: select.select([fd], [], [])[0] == [fd]",
    "epoll": """
poller = select.epoll(); poller.register(fd, select.EPOLLIN)
ask = lambda: [hex(events) for _, events in poller.poll()]
""",
    "epoll edge": """
poller = select.epoll(); poller.register(fd, select.EPOLLIN | select.EPOLLET)
ask = lambda: [hex(events) for _, events in poller.poll()]
""",
}


@pytest.mark.parametrize("kind", WAITERS)
async def test_a_change_wakes_pollers(serve: Serve, kind: str) -> None:
    script = f"""
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDWR)
{WAITERS[kind]}
for _ in range(3):
    print(ask(), os.read(fd, 9), flush=True)
"""
    events = "True" if kind == "select" else "['0x1']"
    async with serve() as it:
        port: Port = it.operations.ports[0]
        async with program(sys.executable, "-I", "-c", script, str(it.file)) as waiter:
            for word in (b"one", b"two", b"three"):
                # It waits when the kernel has a handle to be told by.
                await port.until(lambda: port.poll_handles)
                port.put(word)
                output = await heard(waiter)
                assert output.decode() == f"{events} {word!r}\n"
            assert await waiter.wait() == 0


async def test_a_hang_up_wakes_pollers(serve: Serve) -> None:
    script = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDWR)
poller = select.poll(); poller.register(fd, 0)
print(poller.poll()[0][1] == select.POLLHUP)
"""
    async with serve() as it:
        port: Port = it.operations.ports[0]
        async with trio.open_nursery() as nursery:

            async def hang_up() -> None:
                await port.until(lambda: port.poll_handles)
                port.hung_up = True
                port.changed()

            nursery.start_soon(hang_up)
            assert await it.script(script) == "True"


# --- many ---------------------------------------------------------------------------------


async def test_a_thousand_blocked_readers_and_the_mount_still_answers(serve: Serve) -> None:
    script = """
import os, sys, threading
threading.stack_size(1 << 16)
fd = os.open(sys.argv[1], os.O_RDWR)
threads = [threading.Thread(target=os.read, args=(fd, 1)) for _ in range(1000)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print('all served')
"""
    async with serve(Ports(2)) as it:
        port: Port = it.operations.ports[0]
        async with program(sys.executable, "-I", "-c", script, str(it.file)) as readers:
            await port.blocked(1000)
            answer = await it.shell("exec 3<>$D/p1; echo hi >&3; read x <&3; echo $x; ls $D")
            assert answer.split() == ["hi", "p0", "p1"]
            port.put(b"x" * 1000)
            assert await heard(readers) == b"all served\n"


async def test_five_hundred_entries_are_listed_once_each(serve: Serve) -> None:
    async with serve(Ports(500)) as it:
        names = (await it.shell("ls -U $D")).split()
        assert names == [f"p{number}" for number in range(500)]


async def test_readers_share_what_comes_and_nothing_is_lost_or_doubled(serve: Serve) -> None:
    async with serve() as it:
        port: Port = it.operations.ports[0]
        got: list[str] = []

        async def read() -> None:
            got.append(await it.shell("head -c 1000 $P | od -An -v -tx1 -w1"))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(read)
            await port.blocked(4)
            for number in range(400):
                port.put(bytes([number % 256] * 10))
                await trio.lowlevel.checkpoint()
        values = [int(value, 16) for part in got for value in part.split()]
        assert sorted(values) == sorted(number % 256 for number in range(400) for _ in range(10))


# --- attributes ---------------------------------------------------------------------------


async def test_an_xattr_is_sized_before_it_is_read(serve: Serve) -> None:
    script = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
path = sys.argv[1].encode()
def ask(size, name=b'name'):
    buffer = ctypes.create_string_buffer(max(size, 1))
    if name: done = libc.getxattr(path, name, buffer, size)
    else: done = libc.listxattr(path, buffer, size)
    if done < 0: return errno.errorcode[ctypes.get_errno()]
    return buffer.raw[:done] if size else done
print(ask(0), ask(14), ask(15), ask(400), ask(9, b'user.none'))
print(ask(0, b''), ask(14, b''), ask(15, b''))
"""
    async with serve() as it:
        lines = (await it.script(script)).splitlines()
        value, names = b"org.example.100", b"name\0user.name\0"
        assert lines[0] == f"15 ERANGE {value!r} {value!r} ENODATA"
        assert lines[1] == f"15 ERANGE {names!r}"


# --- the end ------------------------------------------------------------------------------


async def test_unmounting_by_force_ends_blocked_readers_and_the_session(serve: Serve) -> None:
    async with serve() as it:
        async with program("cat", str(it.file)) as cat:
            await it.operations.ports[0].blocked()
            await trio.run_process(["umount", "-f", "-l", str(it.path)])
            assert b"Software caused connection abort" in await heard(cat)
            await it.ended.wait()
        await it.operations.ports[0].blocked(0)


async def test_unmounting_ends_the_session(serve: Serve) -> None:
    async with serve() as it:
        await trio.run_process(["umount", str(it.path)])
        await it.ended.wait()
        assert not fuse.is_mounted(it.path)


async def test_a_busy_mount_is_unmounted_after_a_hang_up(serve: Serve) -> None:
    async with serve() as it:
        port: Port = it.operations.ports[0]
        async with program("cat", str(it.file)) as cat:
            await port.blocked()
            busy = await trio.run_process(
                ["umount", str(it.path)], check=False, stderr=subprocess.DEVNULL
            )
            assert busy.returncode
            port.hung_up = True
            port.changed()
            assert await cat.wait() == 0
        await trio.run_process(["umount", str(it.path)])
        await it.ended.wait()


async def test_a_lazily_unmounted_file_is_served_until_it_is_closed(serve: Serve) -> None:
    async with serve() as it:
        port: Port = it.operations.ports[0]
        async with program("cat", str(it.file)) as cat:
            await port.blocked()
            it.mount.unmount()
            port.put(b"still here")
            assert await heard(cat, b"here") == b"still here"
            port.hung_up = True
            port.changed()
            assert await cat.wait() == 0
        await it.ended.wait()


async def test_a_cancelled_session_answers_all_waiting_requests(serve: Serve) -> None:
    async with serve() as it:
        async with program("cat", str(it.file)) as cat:
            await it.operations.ports[0].blocked()
            it.session._nursery.cancel_scope.cancel()
            await it.ended.wait()
            it.mount.close()
            assert await cat.wait() == 1


async def test_clients_that_die_in_any_state_leave_the_mount_working(serve: Serve) -> None:
    class Slow(Ports):
        async def read(self, fh: FileHandleT, off: int, size: int) -> Any:
            await trio.lowlevel.checkpoint()
            return await super().read(fh, off, size)

    async with serve(Slow()) as it:
        port: Port = it.operations.ports[0]
        for number in range(20):
            async with program("cat", str(it.file)) as cat:
                if number % 2:
                    await port.blocked()
                cat.kill()
        await port.blocked(0)
        port.put(b"alive")
        assert await it.shell("head -c 5 $P") == "alive"

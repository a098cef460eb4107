"""What a file of a mounted port does: each row of the table, with exact errno."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.support.threads import error_of, in_thread
from vconfs.files.open_files import OpenFiles

from .conftest import Mounted, OpenMount, program

IN = select.POLLIN | select.POLLRDNORM
OUT = select.POLLOUT | select.POLLWRNORM
HUP = select.POLLHUP


async def open_port(it: Mounted, flags: int = os.O_RDWR, port_id: int = 0) -> int:
    return await in_thread(lambda: os.open(it.file(port_id), flags))


async def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        await in_thread(lambda descriptor=descriptor: os.close(descriptor))  # type: ignore[misc]


def mask(descriptor: int) -> int:
    poll = select.poll()
    poll.register(descriptor, IN | OUT | select.POLLPRI | select.POLLRDHUP)
    return next((events for _, events in poll.poll(0)), 0)


async def polled(descriptor: int) -> int:
    return await in_thread(lambda: mask(descriptor))


# --- read ---------------------------------------------------------------------------------


async def test_read_gathers_what_is_queued_up_to_the_count(mounted: OpenMount) -> None:
    async with mounted() as it:
        fd = await open_port(it)
        await in_thread(lambda: os.write(fd, b"one"))
        await in_thread(lambda: os.write(fd, b"two"))
        await it.until(lambda: it.port().queued == 6)
        assert await in_thread(lambda: os.read(fd, 4)) == b"onet"
        assert await in_thread(lambda: os.read(fd, 100)) == b"wo"
        await close(fd)


async def test_read_waits_for_data(mounted: OpenMount) -> None:
    async with mounted() as it, trio.open_nursery() as nursery:
        fd = await open_port(it)
        got: list[bytes] = []

        async def read() -> None:
            got.append(await in_thread(lambda: os.read(fd, 100)))

        nursery.start_soon(read)
        await it.until(lambda: it.port()._inbox.turn.locked())
        # The reader's own descriptor: neither waits for the other.
        assert await in_thread(lambda: os.write(fd, b"hello")) == 5
        await it.until(lambda: got)
        assert got == [b"hello"]
        await close(fd)


async def test_read_without_data_is_eagain_with_o_nonblock(mounted: OpenMount) -> None:
    async with mounted() as it:
        fd = await open_port(it, os.O_RDWR | os.O_NONBLOCK)
        assert await error_of(lambda: os.read(fd, 1)) == errno.EAGAIN
        await close(fd)


async def test_o_nonblock_set_later_by_fcntl_counts(mounted: OpenMount) -> None:
    async with mounted() as it:
        fd = await open_port(it)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
        assert await error_of(lambda: os.read(fd, 1)) == errno.EAGAIN
        await close(fd)


async def test_read_without_a_host_is_end_of_file(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock") as it:
        assert await it.run("cat $P; echo done") == "done\n"


async def test_read_without_a_host_waits_for_one_when_asked_to(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock", wait=True) as it:
        async with program("head", "-c", "5", str(it.file())) as head:
            await it.until(lambda: it.port()._inbox.turn.locked())
            host = await trio.open_unix_socket(f"{tmp_path}/sock")
            await host.send_all(b"hello")
            assert head.stdout is not None
            assert await head.stdout.receive_some() == b"hello"
            await host.aclose()


async def test_hang_up_while_waiting_is_the_rest_and_then_end_of_file(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock") as it:
        host = await trio.open_unix_socket(f"{tmp_path}/sock")
        await it.until(lambda: it.port().host_connected)
        async with program("cat", str(it.file())) as cat:
            await it.until(lambda: it.port()._inbox.turn.locked())
            await host.send_all(b"last words")
            await host.aclose()
            assert await cat.wait() == 0
            assert cat.stdout is not None
            assert await cat.stdout.receive_some() == b"last words"


async def test_a_read_of_more_than_1_mib_is_short_and_does_not_wait(mounted: OpenMount) -> None:
    async with mounted("port=echo,host-limit=8000000", limit=8 << 20) as it:
        fd = await open_port(it)
        data = os.urandom((3 << 20) + 5)
        rest = memoryview(data)
        while rest:  # how much of a long write goes at once, the device says
            rest = rest[await in_thread(partial(os.write, fd, rest)) :]
        got = await in_thread(lambda: os.read(fd, 8 << 20))
        while len(got) < len(data):
            more = await in_thread(lambda: os.read(fd, 8 << 20))
            assert more
            got += more
        assert got == data
        await close(fd)


# --- signals ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_alone_ends_a_blocked_reader_and_loses_no_byte(
    mounted: OpenMount, number: signal.Signals
) -> None:
    async with mounted() as it:
        async with program("cat", str(it.file())) as cat:
            await it.until(lambda: it.port()._inbox.turn.locked())
            os.kill(cat.pid, number)
            assert await cat.wait() == -number
        assert await it.run("exec 3<>$P; echo kept >&3; read -r line <&3; echo $line") == "kept\n"


async def test_a_killed_reader_takes_nothing_with_it(mounted: OpenMount) -> None:
    async with mounted() as it:
        fd = await open_port(it)
        async with program("cat", str(it.file())) as first:
            await it.until(lambda: it.port()._inbox.turn.locked())
            async with program("head", "-c", "4", str(it.file())) as second:
                await it.until(lambda: len(it.port().openers) == 3)
                os.kill(first.pid, signal.SIGKILL)
                await first.wait()
                await in_thread(lambda: os.write(fd, b"data"))
                assert second.stdout is not None
                assert await second.stdout.receive_some() == b"data"
        await close(fd)


async def test_a_signal_handler_sees_eintr(mounted: OpenMount) -> None:
    script = """
import ctypes, os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
libc = ctypes.CDLL(None, use_errno=True)
signal.siginterrupt(signal.SIGALRM, True)
fd = os.open(sys.argv[1], os.O_RDWR)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
print(libc.read(fd, ctypes.create_string_buffer(1), 1), ctypes.get_errno())
"""
    async with mounted() as it:
        async with program("/usr/bin/python3", "-c", script, str(it.file())) as reader:
            assert reader.stdout is not None
            assert await reader.stdout.receive_some() == b"-1 4\n"


async def test_a_thousand_blocked_readers_and_the_mount_still_answers(mounted: OpenMount) -> None:
    script = """
import os, sys, threading
threading.stack_size(1 << 16)
fd = os.open(sys.argv[1], os.O_RDWR)
threads = [threading.Thread(target=os.read, args=(fd, 1)) for _ in range(1000)]
for thread in threads: thread.start()
sys.stdin.read(1)
os.write(fd, b"x" * 1000)
for thread in threads: thread.join()
print("all served")
"""
    async with mounted("port=echo", "other=echo") as it:
        async with program("/usr/bin/python3", "-c", script, str(it.file()), stdin=-1) as readers:
            turn = it.port()._inbox.turn
            await it.until(lambda: turn.statistics().tasks_waiting == 999)
            assert (
                await it.run("exec 3<>vcon1; echo hi >&3; read -r line <&3; echo $line; ls")
            ).startswith("hi")
            assert readers.stdin is not None
            assert readers.stdout is not None
            await readers.stdin.send_all(b"\n")
            assert await readers.stdout.receive_some() == b"all served\n"


# --- write --------------------------------------------------------------------------------


async def test_write_on_a_throttled_port_is_enospc(mounted: OpenMount, tmp_path: Path) -> None:
    spec = f"port=unix:{tmp_path}/sock,cache,host-limit=10"
    async with mounted(spec, throttle="enospc") as it:
        fd = await open_port(it)
        assert await in_thread(lambda: os.write(fd, b"0123456789")) == 10
        assert await error_of(lambda: os.write(fd, b"x")) == errno.ENOSPC
        assert not await polled(fd) & OUT
        await close(fd)


async def test_write_on_a_throttled_port_waits_when_asked_to(
    mounted: OpenMount, tmp_path: Path
) -> None:
    spec = f"port=unix:{tmp_path}/sock,cache,host-limit=10"
    async with mounted(spec, throttle="block") as it:
        fd = await open_port(it)
        await in_thread(lambda: os.write(fd, b"0123456789"))
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
        assert await error_of(lambda: os.write(fd, b"x")) == errno.EAGAIN
        async with program("bash", "-c", 'printf later > "$0"', str(it.file())) as writer:
            await it.until(lambda: it.port()._outbox.turn.locked())
            os.kill(writer.pid, signal.SIGTERM)
            assert await writer.wait() == -signal.SIGTERM
        async with program("bash", "-c", 'printf later > "$0"', str(it.file())) as writer:
            await it.until(lambda: it.port()._outbox.turn.locked())
            host = await trio.open_unix_socket(f"{tmp_path}/sock")
            got = b""
            while len(got) < 15:
                got += await host.receive_some()
            assert got == b"0123456789later"
            assert await writer.wait() == 0
            await host.aclose()
        await close(fd)


async def test_write_goes_out_though_no_host_is_there(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock,cache") as it:
        await it.run("echo early > $P")
        host = await trio.open_unix_socket(f"{tmp_path}/sock")
        assert await host.receive_some() == b"early\n"
        await host.aclose()


@pytest.mark.guest_side("only a guest's writes keep their boundaries")
async def test_writes_of_different_programs_do_not_mix(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted(f"port=seqpacket:{tmp_path}/sock") as it:
        host = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        await host.connect(f"{tmp_path}/sock")
        await it.until(lambda: it.port().host_connected)
        async with trio.open_nursery() as nursery:
            for letter in "abcd":
                nursery.start_soon(
                    it.run, f"for i in {{1..20}}; do printf '{letter}%.0s' {{1..3000}} > $P; done"
                )
            for _ in range(80):
                packet = await host.recv(1 << 20)
                assert len(packet) == 3000
                assert len(set(packet)) == 1
        host.close()


# --- poll ---------------------------------------------------------------------------------


async def test_poll_masks(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock,cache,host-limit=10") as it:
        fd = await open_port(it)
        assert await polled(fd) == OUT | HUP
        host = await trio.open_unix_socket(f"{tmp_path}/sock")
        await it.until(lambda: it.port().host_connected)
        assert await polled(fd) == OUT
        await host.send_all(b"x")
        await it.until(lambda: it.port().queued)
        assert await polled(fd) == IN | OUT
        await host.aclose()
        await it.until(lambda: not it.port().host_connected)
        assert await polled(fd) == IN | OUT | HUP
        await in_thread(lambda: os.write(fd, b"0123456789"))
        assert await polled(fd) == IN | HUP
        await close(fd)


CHANGES: list[tuple[str, Callable[[Mounted], object], int]] = [
    ("data", lambda it: it.port().feed(b"x"), IN | OUT),
    ("hang-up", lambda it: it.host.ports[0].disconnect(), OUT | HUP),
    ("throttle", lambda it: it.host.throttle(0, True), 0),
    ("removal", lambda it: it.host.remove(0), HUP | select.POLLERR),
]


@pytest.mark.parametrize(("what", "change", "expected"), CHANGES, ids=[c[0] for c in CHANGES])
@pytest.mark.parametrize("how", ["poll", "epoll", "epoll edge", "select"])
async def test_every_change_wakes_pollers(
    mounted: OpenMount, what: str, change: Callable[[Mounted], object], expected: int, how: str
) -> None:
    async with mounted("port=echo", "other=echo") as it:
        fd = await open_port(it)
        wanted = IN | select.POLLPRI  # none of these holds now

        def wait() -> int:
            if how == "select":
                readable, _, _ = select.select([fd], [], [], 10)
                return len(readable)
            if how == "poll":
                poll = select.poll()
                poll.register(fd, wanted)
                return sum(events for _, events in poll.poll(10_000))
            with select.epoll() as epoll:
                edge = select.EPOLLET if how == "epoll edge" else 0
                epoll.register(fd, wanted | edge)
                return sum(events for _, events in epoll.poll(10))

        woken: list[int] = []

        async def poller() -> None:
            woken.append(await in_thread(wait))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller)
            await it.until(lambda: poll_handles(it))
            change(it)
            if what == "throttle":  # it takes POLLOUT away, and wakes no poller
                await it.until(lambda: it.port().host_throttled and poll_handles(it))
                assert await polled(fd) == 0
                it.port().feed(b"x")
            await it.until(lambda: woken)
        assert woken[0]
        if what != "throttle":
            assert await polled(fd) == expected
        await close(fd)


def poll_handles(it: Mounted) -> int:
    return sum(
        len(files._polling) for files in it.manager.observers if isinstance(files, OpenFiles)
    )


async def test_a_hang_up_that_was_polled_is_over_with_the_next_connection(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock") as it:
        fd = await open_port(it, os.O_RDWR | os.O_NONBLOCK)
        other = await open_port(it, os.O_RDONLY | os.O_NONBLOCK)
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await host.send_all(b"test")
            await it.until(lambda: it.port().queued)
        await it.until(lambda: not it.port().host_connected)
        assert await polled(fd) == IN | OUT | HUP
        assert await in_thread(lambda: os.read(fd, 100)) == b"test"
        assert await polled(fd) & HUP
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await it.until(lambda: it.port().host_connected)
            assert await polled(fd) == OUT
            assert await error_of(lambda: os.read(fd, 1)) == errno.EAGAIN
            assert await polled(other) == IN | OUT  # this one has seen nothing
            await host.send_all(b"new")
            await it.until(lambda: it.port().queued)
            assert await in_thread(lambda: os.read(fd, 100)) == b"new"
        await close(fd, other)


async def test_edge_triggered_epoll_sees_every_arrival(mounted: OpenMount) -> None:
    async with mounted() as it:
        fd = await open_port(it)

        def arrivals(epoll: select.epoll) -> int:
            return len(epoll.poll(10))

        with select.epoll() as epoll:
            await in_thread(lambda: epoll.register(fd, select.EPOLLIN | select.EPOLLET))
            for _ in range(5):
                it.port().feed(b"more")  # no read in between
                assert await in_thread(lambda: arrivals(epoll)) == 1
        await close(fd)


# --- everything else ----------------------------------------------------------------------


async def test_any_number_of_openers(mounted: OpenMount) -> None:
    async with mounted() as it:
        descriptors = [await open_port(it) for _ in range(50)]
        assert len(it.port().openers) == 50
        await close(*descriptors)
        await it.until(lambda: not it.port().openers)
        await it.until(lambda: not it.host.ports[0].guest_connected)


async def test_an_exclusive_port_is_busy_and_names_its_opener(mounted: OpenMount) -> None:
    async with mounted(exclusive=True) as it:
        async with program("bash", "-c", 'exec 3<>"$0"; read', str(it.file()), stdin=-1) as owner:
            await it.until(lambda: it.port().openers)
            assert await error_of(lambda: os.open(it.file(), os.O_RDWR)) == errno.EBUSY
            openers = await in_thread(lambda: os.getxattr(it.file(), "user.openers"))
            assert openers == b"%d bash" % owner.pid


async def test_close_drops_what_was_not_read_unless_the_port_caches(mounted: OpenMount) -> None:
    for spec, rest in (("port=echo", b""), ("port=echo,cache", b"unread\n")):
        async with mounted(spec) as it:
            fd = await open_port(it)
            await in_thread(lambda fd=fd: os.write(fd, b"unread\n"))  # type: ignore[misc]
            await it.until(lambda it=it: it.port().queued)  # type: ignore[misc]
            await close(fd)
            fd = await open_port(it, os.O_RDONLY | os.O_NONBLOCK)
            if rest:
                assert await in_thread(lambda fd=fd: os.read(fd, 100)) == rest  # type: ignore[misc]
            else:
                code = await error_of(lambda fd=fd: os.read(fd, 100))  # type: ignore[misc]
                assert code == errno.EAGAIN
            await close(fd)


async def test_seeking_is_espipe(mounted: OpenMount) -> None:
    async with mounted() as it:
        fd = await open_port(it)
        for call in (
            lambda: os.lseek(fd, 0, os.SEEK_SET),
            lambda: os.lseek(fd, 0, os.SEEK_END),
            lambda: os.pread(fd, 1, 0),
            lambda: os.pwrite(fd, b"x", 0),
        ):
            assert await error_of(call) == errno.ESPIPE
        await close(fd)


async def test_truncation_and_chmod_to_the_same_change_nothing(mounted: OpenMount) -> None:
    async with mounted() as it:
        fd = await open_port(it, os.O_RDWR | os.O_TRUNC | os.O_APPEND)
        await in_thread(lambda: os.write(fd, b"stays"))
        await in_thread(lambda: os.ftruncate(fd, 0))
        await in_thread(lambda: os.truncate(it.file(), 0))
        await in_thread(lambda: os.chmod(it.file(), 0o600))
        await in_thread(lambda: os.chown(it.file(), os.getuid(), -1))
        await in_thread(lambda: os.utime(it.file()))
        assert await in_thread(lambda: os.read(fd, 10)) == b"stays"
        assert await error_of(lambda: os.chmod(it.file(), 0o666)) == errno.EPERM
        assert await error_of(lambda: os.chown(it.file(), 1234, -1)) == errno.EPERM
        await close(fd)


async def test_unplug_while_open(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted("stays=echo", f"goes=unix:{tmp_path}/sock") as it:
        fd = await open_port(it, port_id=1)
        it.port(1).feed(b"the rest")
        it.host.remove(1)
        await it.until(lambda: 1 not in it.manager.ports)
        assert await error_of(lambda: os.stat(it.file(1))) == errno.ENOENT
        assert await error_of(lambda: os.open(it.file(1), os.O_RDWR)) == errno.ENOENT
        assert await polled(fd) & (HUP | select.POLLERR) == HUP | select.POLLERR
        assert await in_thread(lambda: os.read(fd, 100)) == b"the rest"
        assert await error_of(lambda: os.read(fd, 100)) == errno.ENODEV
        assert await error_of(lambda: os.write(fd, b"x")) == errno.ENODEV
        assert await polled(fd) == HUP | select.POLLERR
        await close(fd)


async def test_a_blocked_reader_of_an_unplugged_port_gets_enodev(mounted: OpenMount) -> None:
    async with mounted("stays=echo", "goes=echo") as it:
        async with program("cat", str(it.file(1))) as cat:
            await it.until(lambda: it.port(1)._inbox.turn.locked())
            it.host.remove(1)
            assert await cat.wait() == 1
            assert cat.stdout is not None
            assert b"No such device" in await cat.stdout.receive_some()

"""MOUNTPOINT/.tap: what passes through ports, while others use them."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from tests.support.threads import error_of, in_thread
from vconfs.protocol import tap
from vconfs.protocol.tap import Record
from vconfs.system.tasks import open_background

from .conftest import Mounted, OpenMount

VCONFS = (sys.executable, "-m", "vconfs")


class Tap:
    """An open .tap file, or the output of `vconfs tap --json`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen: list[Record] = []
        self._left = b""

    async def next(self) -> Record | None:
        """Wait for a record; None at the end of the mount."""
        while b"\n" not in self._left:
            data = await in_thread(lambda: os.read(self.fd, 1 << 16))
            if not data:
                return None
            self._left += data
        line, self._left = self._left.split(b"\n", 1)
        self.seen.append(tap.parse(line))
        return self.seen[-1]

    async def until(self, event: str) -> Record:
        while (record := await self.next()) is not None:
            if record.event == event:
                return record
        raise AssertionError(f"the mount has ended before {event}")

    def data(self, event: str, port_id: int = 0) -> bytes:
        found = (it.data for it in self.seen if (it.event, it.id) == (event, port_id))
        return b"".join(found)


@asynccontextmanager
async def tap_of(it: Mounted, *ids: int) -> AsyncIterator[Tap]:
    mode = os.O_RDWR if ids else os.O_RDONLY
    fd = await in_thread(lambda: os.open(it.path / ".tap", mode))
    try:
        if ids:
            await in_thread(lambda: os.write(fd, tap.encode_selection(ids)))
        yield Tap(fd)
    finally:
        await in_thread(lambda: os.close(fd))


async def test_what_a_tap_shows_is_what_was_sent_both_ways(
    mounted: OpenMount, tmp_path: Path
) -> None:
    """An echo runs at full speed meanwhile, in pieces of odd sizes."""
    data = os.urandom(1 << 20)
    async with mounted("a=echo", "b=echo") as it, tap_of(it, 0) as tapped:
        sent = tmp_path / "sent"
        sent.write_bytes(data)
        async with open_background() as nursery:
            nursery.start_soon(
                it.run,
                f"exec 3<>$P; cat {sent} >&3 & head -c 1048576 <&3 | cmp - {sent} && wait",
            )
            while len(tapped.data("in")) < len(data) or len(tapped.data("out")) < len(data):
                record = await tapped.next()
                assert record is not None
                assert record.event != "lost"
            await tapped.until("close")
    assert tapped.data("out") == data
    assert tapped.data("in") == data
    assert {record.id for record in tapped.seen} == {0}
    times = [record.time_ns for record in tapped.seen]
    assert times == sorted(times)


async def test_opens_and_hang_ups_are_events(mounted: OpenMount) -> None:
    async with mounted("talk=null") as it, tap_of(it) as tapped:
        assert (await tapped.until("present")).more == {"connected": True}
        await it.run("exec 3<>$P; echo hi >&3")
        opened, out, closed = [await tapped.next() for _ in range(3)]
        assert opened is not None and out is not None and closed is not None
        assert (opened.event, opened.name, opened.more["program"]) == ("open", b"talk", "bash")
        assert (out.event, out.data) == ("out", b"hi\n")
        assert (closed.event, closed.more) == ("close", opened.more)
        it.port().set_connected(False)
        assert (await tapped.until("disconnect")).id == 0
        it.manager.remove(0)
        assert (await tapped.until("remove")).id == 0


async def test_an_answer_stands_behind_its_question(mounted: OpenMount) -> None:
    async with mounted("a=echo") as it, tap_of(it) as tapped:
        await it.run("exec 3<>$P; for n in 1 2 3; do echo $n >&3; head -n 1 <&3; done")
        await tapped.until("close")
    assert [(record.event, record.data) for record in tapped.seen if record.data] == [
        (event, b"%d\n" % number) for number in (1, 2, 3) for event in ("out", "in")
    ]


async def test_a_tap_of_chosen_ports_shows_no_others(mounted: OpenMount) -> None:
    async with mounted("a=null", "b=null", "c=null") as it, tap_of(it, 1) as tapped:
        await it.run("echo a >vcon0; echo b >vcon1; echo c >vcon2")
        await tapped.until("close")
        assert [record.id for record in tapped.seen] == [1] * 4
        await in_thread(lambda: os.write(tapped.fd, b"0 2"))
        await it.run("echo b >vcon1; echo a >vcon0; echo c >vcon2")
        await tapped.until("close")
        await tapped.until("close")
        assert {record.id for record in tapped.seen[4:]} == {0, 2}


async def test_a_slow_tapper_stops_nothing_and_is_told_of_what_it_missed(
    mounted: OpenMount,
) -> None:
    size = 12 << 20
    async with mounted("a=null") as it, tap_of(it) as slow:
        [reader] = it.manager.taps._tappers
        await it.run(f"head -c {size} /dev/zero >$P")
        assert reader.backlog._size <= tap.BACKLOG
        await slow.until("lost")
        await it.run("echo after >$P")
        while not slow.data("out").endswith(b"after\n"):
            assert await slow.next() is not None
    shown = len(slow.data("out")) - len("after\n")
    assert shown > 1 << 20
    assert shown + sum(it.more["bytes"] for it in slow.seen if it.event == "lost") == size


async def test_poll_wakes_on_a_record(mounted: OpenMount) -> None:
    async with mounted() as it:
        fd = await in_thread(lambda: os.open(it.path / ".tap", os.O_RDONLY | os.O_NONBLOCK))
        assert await in_thread(lambda: os.read(fd, 4096))
        assert await error_of(lambda: os.read(fd, 4096)) == errno.EAGAIN
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert await in_thread(lambda: poll.poll(0)) == []
        await it.run("echo x >$P")
        assert await in_thread(lambda: poll.poll(5000)) == [(fd, select.POLLIN)]
        await in_thread(lambda: os.close(fd))


async def test_the_file_is_its_owners_and_is_hidden(mounted: OpenMount) -> None:
    async with mounted() as it:
        status = await in_thread(lambda: os.stat(it.path / ".tap"))
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.getuid())
        assert await it.run("ls") == "by-name\nvcon0\n"
        assert await error_of(lambda: os.open(it.path / ".tap", os.O_WRONLY)) == errno.EACCES


async def test_what_is_no_selection_is_refused(mounted: OpenMount) -> None:
    async with mounted() as it, tap_of(it, 0) as tapped:
        for text in (b"x", b"-1", b" ", b"1," * 70_000):
            assert await error_of(partial(os.write, tapped.fd, text)) == errno.EINVAL


async def test_tappers_are_bounded_because_each_can_have_a_backlog(mounted: OpenMount) -> None:
    async with mounted() as it:
        path = it.path / ".tap"
        fds = [await in_thread(lambda: os.open(path, os.O_RDONLY)) for _ in range(tap.TAPPERS_MAX)]
        assert await error_of(lambda: os.open(path, os.O_RDONLY)) == errno.ENFILE
        for fd in fds:
            await in_thread(partial(os.close, fd))
        await it.until(lambda: not it.manager.taps._tappers)
        assert it.port().tap is None

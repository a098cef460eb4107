"""MOUNTPOINT/.events: a line per event, for as many readers as there are."""

from __future__ import annotations

import errno
import json
import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.threads import error_of, in_thread
from vconfs.files._events_file import EventsFile
from vconfs.guest.port import Opener, Port
from vconfs.guest.ports import PortManager
from vconfs.host.spec import parse_port

from .conftest import Mounted, OpenMount, program


class Reader:
    """An open .events file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._left = b""

    async def next(self) -> dict[str, Any]:
        while b"\n" not in self._left:
            data = await in_thread(lambda: os.read(self.fd, 4096))
            if not data:
                return {}
            self._left += data
        line, self._left = self._left.split(b"\n", 1)
        event = json.loads(line)
        assert isinstance(event, dict)
        return event

    async def until(self, kind: str) -> dict[str, Any]:
        while (event := await self.next())["event"] != kind:
            pass
        return event


def openers(it: Mounted) -> int:
    events = next(one for one in it.manager.observers if isinstance(one, EventsFile))
    return len(events._readers)


@asynccontextmanager
async def events_of(it: Mounted) -> AsyncIterator[Reader]:
    fd = await in_thread(lambda: os.open(it.path / ".events", os.O_RDONLY))
    yield Reader(fd)
    await in_thread(lambda: os.close(fd))


async def test_the_ports_that_are_there_come_first(mounted: OpenMount) -> None:
    async with mounted("a=echo", "b=null") as it, events_of(it) as events:
        first = await events.next()
        assert (first["event"], first["port"], first["name"]) == ("present", "vcon0", "a")
        assert (first[it.other_side], first["open"], first["console"]) == (True, False, False)
        assert (await events.next())["name"] == "b"
        assert (await events.next())["event"] == "ready"


async def test_the_life_of_a_port_line_by_line(mounted: OpenMount) -> None:
    async with mounted("a=null") as it, events_of(it) as events:
        await events.until("ready")
        await it.host.add(parse_port("b=echo"))
        seen = [await events.next() for _ in range(3)]
        assert {event["event"] for event in seen} == {"add", "connect", "name"}
        assert seen[-1]["name"] == "b" or seen[-2]["name"] == "b"
        await it.run("exec 3<>vcon1; exec 3>&-")
        assert (await events.next())["event"] == "open"
        assert (await events.next())["event"] == "close"
        port = it.port(1)
        port.set_throttled(True)
        port.set_throttled(False)
        port.become_console()
        port.set_connected(False)
        it.host.rename(1, b"c")
        it.host.remove(1)
        seen = [await events.until(kind) for kind in ("throttle", "unthrottle", "console")]
        assert [event["throttled"] for event in seen] == [True, False, False]
        assert (await events.until("disconnect"))[it.other_side] is False
        assert (await events.until("name"))["name"] == "c"
        assert (await events.until("remove"))["port"] == "vcon1"


async def test_every_reader_gets_every_event(mounted: OpenMount) -> None:
    async with mounted() as it, events_of(it) as one, events_of(it) as two:
        it.manager.rename(it.port(), b"other")
        for events in (one, two):
            assert (await events.until("name"))["name"] == "other"


async def test_poll_wakes_on_an_event(mounted: OpenMount) -> None:
    async with mounted() as it:
        fd = await in_thread(lambda: os.open(it.path / ".events", os.O_RDONLY | os.O_NONBLOCK))
        assert await in_thread(lambda: os.read(fd, 4096))
        with pytest.raises(BlockingIOError):
            await in_thread(lambda: os.read(fd, 4096))
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert await in_thread(lambda: poll.poll(0)) == []
        it.manager.rename(it.port(), b"other")
        assert await in_thread(lambda: poll.poll(5000)) == [(fd, select.POLLIN)]
        await in_thread(lambda: os.close(fd))


async def test_the_file_is_hidden_and_cannot_be_written(mounted: OpenMount) -> None:
    async with mounted() as it:
        assert await it.run("ls") == "by-name\nvcon0\n"
        assert (await it.run("stat -c '%a %F' .events")).startswith("400 regular")
        with pytest.raises(OSError) as refused:
            await in_thread(lambda: os.open(it.path / ".events", os.O_RDWR))
        assert refused.value.errno == errno.EACCES


async def test_openers_are_bounded_because_each_can_have_a_backlog(mounted: OpenMount) -> None:
    async with mounted("port=echo") as it:
        path = it.path / ".events"
        files = await in_thread(lambda: [os.open(path, os.O_RDONLY) for _ in range(256)])
        assert await error_of(lambda: os.open(path, os.O_RDONLY)) == errno.ENFILE
        await in_thread(lambda: os.close(files.pop()))
        await it.until(lambda: openers(it) < 256)
        files.append(await in_thread(lambda: os.open(path, os.O_RDONLY)))
        for file in files:
            await in_thread(lambda file=file: os.close(file))  # type: ignore[misc]


async def test_the_end_of_the_mount_is_the_end_of_the_file(mounted: OpenMount) -> None:
    async with mounted() as it:
        async with program("cat", str(it.path / ".events")) as cat:
            assert cat.stdout is not None
            seen = b""
            while b"ready" not in seen:
                seen += await cat.stdout.receive_some()
            next(one for one in it.manager.observers if isinstance(one, EventsFile)).shut()
            assert await cat.wait() == 0


def test_a_reader_that_is_too_slow_learns_how_much_it_missed() -> None:
    manager = PortManager()
    file = EventsFile(manager)
    opener = Opener(1)
    reader = file.open(opener, os.O_RDONLY, lambda reader: None)
    port = Port(0)
    for _ in range(5000):
        file.port_added(port)
    lines = b"".join(bytes(piece) for piece in reader.take_nowait(1 << 30)).splitlines()
    (lost,) = (bytes(piece) for piece in reader.take_nowait(1 << 20))
    missing = json.loads(lost)
    assert missing["event"] == "lost"
    assert len(lines) + missing["count"] == 5001
    reader.close(opener)
    file.port_added(port)
    assert reader.answer_poll() == 0


def test_a_reader_learns_where_it_missed_something() -> None:
    file = EventsFile(PortManager())
    reader = file.open(Opener(1), os.O_RDONLY, lambda reader: None)
    for _ in range(5000):
        file.port_added(Port(0))
    before = b"".join(reader.take_nowait(1 << 16))
    file.port_added(Port(1))
    after = before + b"".join(reader.take_nowait(1 << 30))
    *known, lost, last = map(json.loads, after.splitlines())
    assert (lost["event"], last["port"]) == ("lost", "vcon1")
    assert len(known) + lost["count"] == 5001


def test_small_reads_get_a_line_in_parts() -> None:
    file = EventsFile(PortManager())
    reader = file.open(Opener(1), os.O_RDONLY, lambda reader: None)
    line = b""
    while not line.endswith(b"\n"):
        (piece,) = reader.take_nowait(3)
        assert len(piece) <= 3
        line += piece
    assert json.loads(line)["event"] == "ready"

"""Bytes that are lost by rule: every user of a mount can see how many, and is told."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.support.threads import in_thread
from vconfs.files._events_file import EventsFile
from vconfs.guest.port import Opener, Port
from vconfs.guest.ports import PortManager

from .conftest import OpenMount
from .test_events_file import events_of
from .test_watching import seen, vconfs


async def attribute(file: Path, name: str) -> bytes:
    return await in_thread(lambda: os.getxattr(file, name))


async def test_unread_data_at_the_last_close(mounted: OpenMount) -> None:
    async with mounted("e=echo", "quiet=null") as it, events_of(it) as events:
        assert await attribute(it.file(), "user.dropped") == b"0"
        await it.run("exec 3<>vcon0; printf 12345 >&3; read -r -N 2 some <&3; exec 3>&-")
        event = await events.until("dropped")
        assert (event["port"], event["count"], event["by"]) == ("vcon0", 3, it.side)
        assert await attribute(it.file(), "user.dropped") == b"3"
        assert await attribute(it.file(1), "user.dropped") == b"0"


@pytest.mark.guest_side("a guest keeps what comes for a port that is not open")
async def test_what_the_host_end_of_an_embedded_device_dropped(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"chat=unix:{tmp_path}/chat") as it, events_of(it) as events:
        assert await attribute(it.file(), "user.host_dropped") == b"0"
        await it.run("printf 12345 >vcon0")
        event = await events.until("dropped")
        assert (event["port"], event["count"], event["by"]) == ("vcon0", 5, "host")
        assert await attribute(it.file(), "user.host_dropped") == b"5"
        assert await attribute(it.file(), "user.dropped") == b"0"


@pytest.mark.guest_side("a guest keeps what comes for a port that is not open")
async def test_the_commands_show_it(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted(f"chat=unix:{tmp_path}/chat", "other=null") as it:
        listed, looked = (
            f"{sys.executable} -m vconfs {words} ." for words in ("ls", "top --count 1")
        )
        assert "DROPPED" not in await it.run(f"{listed} && {looked}")
        async with vconfs("watch", it.path) as watch:
            await it.until(lambda: it.events_readers == 1)
            await it.run("printf 12345 >vcon0")
            assert b"chat  5 bytes by the host\n" in await seen(watch, b"bytes by the host\n")
        for command in (listed, looked):
            head, chat, other = (await it.run(command)).splitlines()
            assert "DROPPED" in head
            assert " 5" in chat
            assert " 5" not in other
        first = json.loads((await it.run(f"{listed} --json")).splitlines()[0])
        assert (first["dropped"], first["host_dropped"]) == (0, 5)


async def test_a_removed_port_reports_what_was_left_unread(mounted: OpenMount) -> None:
    async with mounted("e=echo") as it, events_of(it) as events:
        port = it.port()
        file = await in_thread(lambda: os.open(it.file(), os.O_RDWR))
        await in_thread(lambda: os.write(file, b"unread"))
        await it.until(lambda: port.queued == 6)
        it.host.remove(0)
        await events.until("remove")
        await in_thread(lambda: os.close(file))
        event = await events.until("dropped")
        assert (event["port"], event["count"]) == ("vcon0", 6)


async def test_many_losses_are_logged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    manager = PortManager()
    events = EventsFile(manager)
    manager.observers.append(events)
    first, second = manager.add(0), manager.add(1)
    reader = events.open(Opener(1), os.O_RDONLY, lambda reader: None)

    def lose(port: Port, count: int) -> None:
        port.counters.dropped += count
        port.on_change(port)

    def told() -> list[tuple[int, int]]:
        lines = b"".join(map(bytes, reader.take_nowait(1 << 20))).splitlines()
        found = [json.loads(line) for line in lines]
        return [(line["id"], line["count"]) for line in found if line["event"] == "dropped"]

    for _ in range(1000):
        lose(first, 1)
    lose(second, 5)
    assert told() == [(0, 1), (1, 5)]
    now += 1
    lose(first, 2)
    lose(first, 3)
    assert told() == [(0, 999 + 2)]
    first.set_throttled(True)  # something else happens
    assert told() == [(0, 3)]
    manager.remove(0)
    second.set_throttled(True)
    assert told() == []

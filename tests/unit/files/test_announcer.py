"""Announcing to inotify, by calls that are only counted here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from vconfs.files import announcer
from vconfs.files.announcer import Announcer
from vconfs.files.tree import ROOT_PLACE


async def test_a_host_that_changes_ports_without_an_end_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    made, makes = trio.open_memory_channel[str](100)
    monkeypatch.setattr(announcer, "_JOBS_MAX", 4)

    def make_file(name: bytes, folder: int) -> None:
        trio.from_thread.run_sync(made.send_nowait, name.decode())

    monkeypatch.setattr(announcer, "_make_file", make_file)
    device = tmp_path.stat().st_dev
    it = Announcer()
    it.file_system = f"{os.major(device)}:{os.minor(device)}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.run, tmp_path)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(8):
            it.created(ROOT_PLACE, b"vcon%d" % number)
        assert [await makes.receive() for _ in range(4)] == ["vcon0", "vcon1", "vcon2", "vcon3"]
        it.created(ROOT_PLACE, b"later")
        assert await makes.receive() == "later"
        nursery.cancel_scope.cancel()
    assert caplog.messages == ["the ports change too fast: inotify does not report every change"]

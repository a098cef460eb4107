"""One inotify instance tells many tasks of the opens of their files."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.host.chardevs.chardev_port import all_descriptors
from vconfs.system import inotify
from vconfs.system.inotify import Change, Changes, watching

COUNT = 300  # more than the instances that a user may have


def instances() -> int:
    return list(all_descriptors().values()).count("anon_inode:inotify")


def files(folder: Path, count: int) -> list[Path]:
    paths = [folder / str(number) for number in range(count)]
    for path in paths:
        path.touch()
    return paths


async def test_one_instance_serves_all_and_wakes_those_whose_file_was_opened(
    tmp_path: Path, closed_soon: None
) -> None:
    paths = files(tmp_path, COUNT)
    before, seen = instances(), []

    async def wait(number: int, opens: Changes) -> None:
        await opens.wait()
        seen.append(number)

    with ExitStack() as stack:
        watched = [stack.enter_context(watching(str(path), Change.OPENED)) for path in paths]
        assert instances() == before + 1
        async with trio.open_nursery() as nursery:
            for number, opens in enumerate(watched):
                nursery.start_soon(wait, number, opens)
            await trio.testing.wait_all_tasks_blocked()
            assert seen == []
            for number in (7, 0, 299):  # the first of them reads for all
                paths[number].read_bytes()
                await trio.testing.wait_all_tasks_blocked()
            assert seen == [7, 0, 299]
            for path in paths:
                path.read_bytes()
        assert sorted(seen) == list(range(COUNT))
    await until_there_are(before)


@pytest.fixture
def closed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep an unused instance for a moment only."""
    monkeypatch.setattr(inotify, "_KEEP", 0.05)


async def until_there_are(count: int) -> None:
    """An unused instance is closed later, by a thread."""
    with trio.fail_after(5):
        while instances() != count:
            await trio.sleep(0.01)


async def test_watches_that_come_and_go_use_one_instance(tmp_path: Path) -> None:
    before = instances()
    for _ in range(COUNT):
        with watching(str(tmp_path), Change.CREATED):
            assert instances() == before + 1
        await trio.lowlevel.checkpoint()
    with watching(str(tmp_path), Change.CREATED) as created:
        (tmp_path / "new").touch()
        await created.wait()
    await until_there_are(before)


async def test_a_reader_that_leaves_hands_the_reading_on(tmp_path: Path) -> None:
    [first, second] = files(tmp_path, 2)
    with watching(str(first), Change.OPENED) as one, watching(str(second), Change.OPENED) as other:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def leave() -> None:
                with scope:
                    await one.wait()

            nursery.start_soon(leave)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(other.wait)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            second.read_bytes()
        assert (one.happened, other.happened) == (False, True)


async def test_an_open_before_the_wait_is_not_missed(tmp_path: Path) -> None:
    [path] = files(tmp_path, 1)
    with watching(str(path), Change.OPENED) as opens:
        path.read_bytes()
        await opens.wait()
        await opens.wait()
        opens.happened = False
        with trio.move_on_after(0.01) as scope:
            await opens.wait()
        assert scope.cancelled_caught


async def test_a_file_that_cannot_be_watched_leaves_no_instance(
    tmp_path: Path, closed_soon: None
) -> None:
    before = instances()
    with pytest.raises(FileNotFoundError), watching(str(tmp_path / "none"), Change.OPENED):
        pass
    await until_there_are(before)


async def test_lost_events_wake_all_waiters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files(tmp_path, 2)
    lost = inotify._EVENT.pack(-1, 0x4000, 0, 0)
    with ExitStack() as stack:
        watched = [stack.enter_context(watching(str(path), Change.OPENED)) for path in paths]
        async with trio.open_nursery() as nursery:
            for opens in watched:
                nursery.start_soon(opens.wait)
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(os, "read", lambda descriptor, size: lost)
            paths[0].open().close()
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.undo()
        assert all(opens.happened for opens in watched)


async def test_a_watch_tells_that_its_folder_is_gone(tmp_path: Path) -> None:
    """A new folder of this name, even with the same inode number, needs a new watch."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with watching(str(folder), Change.CREATED | Change.DELETED_SELF) as changes:
        (folder / "file").mkdir()
        await changes.wait()
        assert not changes.gone
        changes.happened = False
        (folder / "file").rmdir()
        folder.rmdir()
        await changes.wait()
        assert changes.gone

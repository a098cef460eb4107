"""The file chardev while its file cannot be written, is rotated, or is somewhere else."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.waiting import until
from tests.unit.host.chardevs.chardev_port import (
    FakePort,
    descriptors,
    serving,
    until_only_open,
)
from vconfs.guest.port import Opener, PortOptions
from vconfs.host.chardevs._appending import AppendedFile
from vconfs.host.spec import parse_port
from vconfs.testing import open_ends


class Disk:
    """The space of a disk; larger writes fail with `number`."""

    def __init__(self, number: int = errno.ENOSPC) -> None:
        self.number = number
        self.room = 1 << 40
        self.failures = 0
        self._lock = threading.Lock()

    def cut(self, size: int) -> int:
        with self._lock:
            size = min(size, self.room)
            self.room -= size
            if not size:
                self.failures += 1
                raise OSError(self.number, os.strerror(self.number))
            return size


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Have all appended files on a disk, which has space at first."""
    disk, append = Disk(), AppendedFile.append

    def limited(file: AppendedFile, data: memoryview) -> int:
        return append(file, data[: disk.cut(len(data))])

    monkeypatch.setattr(AppendedFile, "append", limited)
    return disk


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again sooner: how long pauses are is tested in test_backoff.py."""
    monkeypatch.setattr("vconfs.system.backoff.Pauses.next", lambda self: 0.02)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the lines that the log has."""
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def no_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no pause end by itself."""
    monkeypatch.setattr("vconfs.system.backoff.Pauses.next", lambda self: 1000.0)


def holds(path: Path, data: bytes) -> Callable[[], bool]:
    return lambda: path.exists() and path.read_bytes() == data


# --- a full disk --------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
async def test_a_full_disk_holds_the_guest_back_and_loses_nothing(
    dialect: str, disk: Disk, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    path = tmp_path / "log"
    data = b"".join(b"%015d\n" % number for number in range(1 << 18))  # 4 MiB
    spec = parse_port(f"log=file:{path},host-limit=300000")
    disk.room = 1_000_000
    written = 0
    async with open_ends([spec], PortOptions(throttle="block"), dialect) as ends:
        port, host_port = ends.ports[0], ends.host.ports[0]
        port.open(Opener(os.getpid()))

        async def write() -> None:
            nonlocal written
            while written < len(data):
                written += await port.write(data[written : written + 50_000])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await until(lambda: disk.failures > 1)
            await trio.testing.wait_all_tasks_blocked(0.1)
            held_back = written
            assert 1_000_000 < held_back < len(data)
            assert path.stat().st_size == 1_000_000
            assert host_port.connected
            if dialect == "v8":
                assert port.host_throttled
            await until(lambda: disk.failures > 3)
            assert written == held_back
            disk.room = 1 << 40
        await until(lambda: path.stat().st_size == len(data))
        assert path.read_bytes() == data
        assert host_port.counters.dropped == host_port.counters.resets == 0
        assert not port.host_throttled
    assert said() == [
        f"port 0: {path}: No space left on device; trying again",
        f"port 0: {path} can be written again",
    ]


@pytest.mark.parametrize(
    "number", [errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EROFS, errno.ESTALE]
)
@pytest.mark.usefixtures("short_pauses")
async def test_errors_that_pass(
    number: int, disk: Disk, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    disk.number, disk.room = number, 3
    async with serving(f"file:{tmp_path}/log") as port:
        port.write(b"012345")
        await until(lambda: disk.failures > 2)
        assert port.connected
        disk.room = 100
        await until(holds(tmp_path / "log", b"012345"))
        port.write(b"678")
        await until(holds(tmp_path / "log", b"012345678"))
        assert port.connects == 1
    (begins, ends) = said()
    assert begins.startswith(f"port 3: {tmp_path}/log: {os.strerror(number)}")
    assert begins.endswith("; trying again")
    assert ends == f"port 3: {tmp_path}/log can be written again"


@pytest.mark.usefixtures("short_pauses")
async def test_a_disk_that_is_freed_bit_by_bit_is_one_trouble(
    disk: Disk, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    path = tmp_path / "log"
    disk.room = 0
    async with serving(f"file:{path}") as port:
        port.write(bytes(50_000))
        for size in range(0, 30_000, 5_000):
            await until(lambda: path.exists() and path.stat().st_size == size and said())  # noqa: B023
            disk.room += 5_000
            assert port.reopen is not None
            port.reopen()
        await until(lambda: path.stat().st_size == 30_000)
        assert len(said()) == 1
        disk.room = 1 << 40
        await until(lambda: len(said()) == 2)
        assert path.read_bytes() == bytes(50_000)


@pytest.mark.expect_log("trying again")
async def test_what_waits_for_a_disk_is_in_the_port(disk: Disk, tmp_path: Path) -> None:
    disk.room = 0
    async with serving(f"file:{tmp_path}/log") as port:
        port.write(bytes(1 << 20))
        for _ in range(3):
            failures = disk.failures
            await until(lambda: disk.failures > failures)  # noqa: B023
            await until(lambda: sum(len(piece or b"") for piece in port.queue) == 1 << 20)
    assert sum(len(piece or b"") for piece in port.queue) == 1 << 20


@pytest.mark.expect_log("trying again")
async def test_a_disconnect_tries_at_once(disk: Disk, tmp_path: Path, no_tries: None) -> None:
    disk.room = 0
    async with serving(f"file:{tmp_path}/log") as port:
        port.write(b"data")
        await until(lambda: disk.failures == 1)
        await trio.testing.wait_all_tasks_blocked()
        disk.room = 100
        assert port.reopen is not None
        port.reopen()
        await until(holds(tmp_path / "log", b"data"))
        assert port.connected


@pytest.mark.expect_log("trying again")
async def test_a_device_that_is_full() -> None:
    before = descriptors()
    async with serving("file:/dev/full") as port:
        port.write(b"x")
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert port.connected and list(port.queue) == [b"x"]
    await until_only_open(before)


# --- a path that leads elsewhere ----------------------------------------------------------


async def write(port: FakePort, path: Path, data: bytes, whole: bytes) -> None:
    port.write(data)
    await until(holds(path, whole))


async def test_a_file_that_was_renamed_is_left_at_the_next_write(tmp_path: Path) -> None:
    before = descriptors()
    path, old = tmp_path / "log", tmp_path / "log.1"
    async with serving(f"file:{path}") as port:
        await write(port, path, b"one", b"one")
        path.rename(old)
        await write(port, path, b"two", b"two")
        path.rename(old)
        path.write_bytes(b"head ")
        await write(port, path, b"three", b"head three")
        assert old.read_bytes() == b"two"
        path.unlink()
        await write(port, path, b"four", b"four")
        path.write_bytes(b"")  # as copytruncate does
        await write(port, path, b"five", b"five")
    await until_only_open(before)


async def test_a_link_that_leads_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.symlink_to("monday")
    async with serving(f"file:{path}") as port:
        await write(port, path, b"one", b"one")
        path.unlink()
        path.symlink_to("tuesday")
        await write(port, path, b"two", b"two")
    assert (tmp_path / "monday").read_bytes() == b"one"


async def test_a_folder_that_was_removed_and_made_anew(
    tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    folder = tmp_path / "var"
    folder.mkdir()
    async with serving(f"file:{folder}/log") as port:
        await write(port, folder / "log", b"one", b"one")
        shutil.rmtree(folder)
        port.write(b"two")
        await until(said)
        folder.mkdir()
        await until(holds(folder / "log", b"two"))
    assert said() == [
        f"port 3: {folder}/log: the folder {folder} does not exist: make it first; trying again",
        f"port 3: {folder}/log can be written again",
    ]


@pytest.mark.expect_log("trying again")
async def test_a_file_that_took_the_place_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with serving(f"file:{path}") as port:
        await write(port, path, b"one", b"one")
        path.rename(tmp_path / "old")
        path.mkdir()
        port.write(b"two")
        await trio.testing.wait_all_tasks_blocked(0.02)
        path.rmdir()
        await until(holds(path, b"two"))


async def test_the_next_reader_of_a_fifo(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    async with serving(f"file:{path}") as port:
        os.close(reader)
        port.write(b"kept")
        await until(said)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        await trio.lowlevel.wait_readable(reader)
        assert os.read(reader, 100) == b"kept"
    os.close(reader)
    assert said()[-1] == f"port 3: {path} can be written again"


async def test_files_are_opened_anew_when_the_host_end_is_asked(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    specs = [f"a=file:{path}", f"b=file:{tmp_path}/b", "c=echo", f"d=unix:{tmp_path}/d"]
    async with open_ends([parse_port(spec) for spec in specs]) as ends:
        path.rename(old)
        ends.host.reopen_files()
        await until(path.exists)  # though nothing was written
        assert not any(link.startswith(str(old)) for link in descriptors().values())
        path.rename(old)
        ends.host.disconnect(0)
        await until(path.exists)
        ends.host.remove(0)
        ends.host.reopen_files()


async def test_a_reopening_amid_writes_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with serving(f"file:{path}") as port:
        for number in range(300):
            port.write(b"%07d\n" % number * 1000)
            assert port.reopen is not None
            port.reopen()
            if number % 30 == 7:
                await until(path.exists)
                path.rename(f"{path}.{number:03}")
            await trio.sleep(0)
        await until(lambda: not port.queue)
        await trio.testing.wait_all_tasks_blocked(0.02)
    whole = b"".join(file.read_bytes() for file in sorted(tmp_path.glob("log.*")))
    whole += path.read_bytes() if path.exists() else b""
    assert whole == b"".join(b"%07d\n" % number * 1000 for number in range(300))

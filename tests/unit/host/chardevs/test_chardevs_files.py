"""Files, fifos, ptys, our own streams, and the chardevs without an outside."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
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
from vconfs.errors import VconfsError
from vconfs.host.chardevs import ptys, stdio
from vconfs.host.chardevs.ptys import Pty
from vconfs.protocol.events import Buffer
from vconfs.system.path_errors import cannot


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (2, "/no/x: the folder /no does not exist: make it first"),
        (13, "/no/x: Permission denied: choose another path, or change who may write there"),
        (17, "/no/x exists: choose another path, or remove it"),
        (21, "/no/x: Is a directory"),
        (6, "/no/x: no program reads it: start its reader first"),
    ],
)
def test_what_is_wrong_with_a_path(number: int, message: str) -> None:
    assert str(cannot("/no/x", OSError(number, os.strerror(number)))) == message


# --- echo, null, zero ---------------------------------------------------------------------


async def test_echo_sends_in_order_whatever_the_guest_takes() -> None:
    async with serving("echo") as port:
        port.room = 3
        port.write(b"12345")  # 123 at once
        port.write(b"678")  # waits behind 45
        await port.until_received(b"12345678")
        port.throttle(True)
        port.write(b"a")
        await trio.testing.wait_all_tasks_blocked()
        port.throttle(False)  # the task has the a, and has not run again
        port.write(b"b")
        await port.until_received(b"12345678ab")
        await trio.testing.wait_all_tasks_blocked()
        port.write(b"c")
        assert port.sent[-1] == b"c"  # at once again


async def test_null_and_zero_need_no_task() -> None:
    async with serving("null") as port:
        port.write(bytes(100))
        assert port.connected and not port.queue and not port.sent
    async with serving("zero") as port:
        port.write(bytes(100))
        assert port.source is not None
        assert [len(port.source(size)) for size in (1, 4096, 1 << 30)] == [1, 4096, 1 << 20]
        assert not port.queue and not any(port.source(4096))


# --- files and fifos ----------------------------------------------------------------------


async def test_a_fifo_as_a_file_is_no_trap(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(VconfsError, match="no program reads it"):
        async with serving(f"file:{path}"):
            pass
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    async with serving(f"file:{path}") as port:
        port.write(bytes(1 << 20))
        got = 0
        while got < 1 << 20:
            await trio.lowlevel.wait_readable(reader)
            got += len(os.read(reader, 1 << 20))
    os.close(reader)


async def test_no_fifo_is_left_where_the_other_cannot_be_made(tmp_path: Path) -> None:
    for name, make in (
        ("x.out", Path.touch),
        ("x.in", lambda path: path.symlink_to("nowhere")),
    ):
        path = tmp_path / name
        make(path)
        with pytest.raises(VconfsError, match=f"{path} exists"):
            async with serving(f"pipe:{tmp_path}/x"):
                pass
        assert list(tmp_path.iterdir()) == [path]
        path.unlink()


async def test_what_was_put_in_the_place_of_a_fifo_stays(tmp_path: Path) -> None:
    async with serving(f"pipe:{tmp_path}/x"):
        for name in ("x.in", "x.out"):
            (tmp_path / "other").write_text(name)
            (tmp_path / "other").replace(tmp_path / name)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "x.in": "x.in",
        "x.out": "x.out",
    }


async def test_a_fifo_that_becomes_a_file_as_it_is_opened_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.in"

    def make_file(path: str, mode: int) -> None:
        Path(path).touch()

    monkeypatch.setattr(os, "mkfifo", make_file)
    with pytest.raises(VconfsError, match=f"{path} exists and is not a fifo"):
        async with serving(f"pipe:{tmp_path}/x"):
            pass


async def test_fifos_hold_back_both_ways(tmp_path: Path) -> None:
    async with serving(f"pipe:{tmp_path}/x") as port:
        assert stat.S_ISFIFO((tmp_path / "x.in").stat().st_mode)
        port.throttle(True)
        writer = os.open(tmp_path / "x.in", os.O_WRONLY | os.O_NONBLOCK)
        written = 0
        for _ in range(100):
            await trio.testing.wait_all_tasks_blocked()
            try:
                written += os.write(writer, bytes(1 << 16))
            except BlockingIOError:
                break
        else:
            pytest.fail("the writer is not slowed down")
        for _ in range(100):
            port.write(bytes(1 << 16))
        await trio.testing.wait_all_tasks_blocked()
        assert len(port.queue) > 90
        port.throttle(False)
        await port.until_received(bytes(written))
        os.close(writer)


def inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


async def ask(port: FakePort, path: Path) -> None:
    """Have data through both fifos."""
    sent = port.received
    with open(f"{path}.in", "wb", buffering=0) as fifo:
        fifo.write(b"in")
    await port.until_received(sent + b"in")
    with open(f"{path}.out", "rb", buffering=0) as fifo:
        port.write(b"out")
        await trio.lowlevel.wait_readable(fifo)
        assert fifo.read(10) == b"out"


@pytest.mark.parametrize("suffix", [".in", ".out"])
@pytest.mark.parametrize("way", ["removed", "replaced", "disconnected"])
async def test_fifos_that_are_removed_or_made_anew(suffix: str, way: str, tmp_path: Path) -> None:
    before = descriptors()
    path, fifo = tmp_path / "x", tmp_path / f"x{suffix}"
    async with serving(f"pipe:{path}") as port:
        await ask(port, path)
        held = os.open(fifo, os.O_RDWR)  # so that its number is not used again
        if way == "removed":
            fifo.unlink()
        elif way == "replaced":
            os.mkfifo(tmp_path / "new")
            (tmp_path / "new").rename(fifo)
        else:
            fifo.unlink()
            assert port.reopen is not None
            port.reopen()
        await until(lambda: inode(fifo) not in (None, os.fstat(held).st_ino))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await ask(port, path)
        os.close(held)
        assert port.connects == 1 and port.connected
    await until_only_open(before)
    # What another one made stays; the rest was ours.
    assert [left.name for left in tmp_path.iterdir()] == [fifo.name] * (way == "replaced")


async def test_a_folder_of_fifos_that_is_removed_and_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "run"
    folder.mkdir()
    async with serving(f"pipe:{folder}/x") as port:
        await ask(port, folder / "x")
        shutil.rmtree(folder)
        await until(lambda: len(caplog.records) == 2)
        port.write(b"kept")
        folder.mkdir()
        await until(lambda: len(os.listdir(folder)) == 2)
        with open(folder / "x.out", "rb", buffering=0) as fifo:
            await trio.lowlevel.wait_readable(fifo)
            assert fifo.read(10) == b"kept"
        await ask(port, folder / "x")
        assert port.connects == 1 and port.connected
    gone = f"the folder {folder} does not exist: make it first; trying again"
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"port 3: {folder}/x.in is there again",
        f"port 3: {folder}/x.in: {gone}",
        f"port 3: {folder}/x.out is there again",
        f"port 3: {folder}/x.out: {gone}",
    ]


@pytest.mark.parametrize("way", ["in", "out"])
async def test_a_fifo_stays_open_when_the_other_one_is_replaced(way: str, tmp_path: Path) -> None:
    async with serving(f"pipe:{tmp_path}/x") as port:
        with (
            open(tmp_path / "x.in", "wb", buffering=0) as writer,
            open(tmp_path / "x.out", "rb", buffering=0) as reader,
        ):
            (tmp_path / f"x.{way}").unlink()
            await until((tmp_path / f"x.{way}").exists)
            await trio.testing.wait_all_tasks_blocked(0.01)
            if way == "out":
                writer.write(b"in")
                await port.until_received(b"in")
            else:
                port.write(b"out")
                await trio.lowlevel.wait_readable(reader)
                assert reader.read(10) == b"out"


async def test_what_is_in_a_removed_fifo_is_not_lost(tmp_path: Path) -> None:
    async with serving(f"pipe:{tmp_path}/x") as port:
        port.write(b"o" * 200_000)  # more than a fifo holds
        port.throttle(True)
        with open(tmp_path / "x.in", "wb", buffering=0) as fifo:
            fifo.write(b"i" * 60_000)
        await trio.testing.wait_all_tasks_blocked()
        number = inode(tmp_path / "x.out")
        held = os.open(tmp_path / "x.out", os.O_PATH)
        (tmp_path / "x.in").unlink()
        (tmp_path / "x.out").unlink()
        await trio.testing.wait_all_tasks_blocked(0.02)
        port.throttle(False)
        await port.until_received(b"i" * 60_000)
        await until(lambda: inode(tmp_path / "x.out") not in (None, number))
        os.close(held)
        got = b""
        with open(tmp_path / "x.out", "rb", buffering=0) as fifo:
            while len(got) < 200_000:
                await trio.lowlevel.wait_readable(fifo)
                got += fifo.read(1 << 20)
        assert got == b"o" * 200_000


async def test_the_reader_of_a_removed_fifo_gets_what_was_in_it(tmp_path: Path) -> None:
    async with serving(f"pipe:{tmp_path}/x") as port:
        with open(tmp_path / "x.out", "rb", buffering=0) as fifo:
            port.write(b"before")
            await trio.testing.wait_all_tasks_blocked()
            (tmp_path / "x.out").unlink()
            await until((tmp_path / "x.out").exists)
            assert fifo.read(100) == b"before"
            assert fifo.read(100) == b""


async def test_fifos_without_inotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr("vconfs.host.chardevs._fifos.watching", fail)
    async with serving(f"pipe:{tmp_path}/x") as port:
        await ask(port, tmp_path / "x")
        shutil.move(tmp_path / "x.in", tmp_path / "old")
        assert port.reopen is not None
        port.reopen()
        await until((tmp_path / "x.in").exists)
        await ask(port, tmp_path / "x")


# --- ptys ---------------------------------------------------------------------------------


@contextmanager
def opened(path: Path | str) -> Iterator[int]:
    slave = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        yield slave
    finally:
        os.close(slave)


async def test_a_program_that_leaves_at_once_is_heard(tmp_path: Path) -> None:
    async with serving(f"pty:{tmp_path}/tty") as port:
        for count in range(1, 4):
            with opened(tmp_path / "tty") as slave:
                os.write(slave, b"hi\n")
            await port.until(lambda: port.connects == count and not port.connected)  # noqa: B023
        assert port.received == b"hi\n" * 3


async def test_the_next_program_at_a_pty_finds_it_as_new(tmp_path: Path) -> None:
    chardev = Pty(f"{tmp_path}/tty")
    async with serving(chardev) as port:
        assert os.readlink(tmp_path / "tty") == chardev.path
        with opened(chardev.path) as slave:
            await port.until_connected()
            raw = termios.tcgetattr(slave)
            tty.setcbreak(slave)
            termios.tcflow(slave, termios.TCOON)
            for _ in range(50):
                port.write(b"unread" * 1000)
            await trio.testing.wait_all_tasks_blocked()
        await port.until_connected(False)
        port.queue.clear()
        with opened(chardev.path) as slave:
            await port.until_connected()
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):
                os.read(slave, 100)
            assert termios.tcgetattr(slave) == raw
        await port.until_connected(False)


async def test_files_in_the_place_of_the_link(tmp_path: Path) -> None:
    link, folder = tmp_path / "tty", tmp_path / "folder"
    folder.mkdir()
    link.symlink_to(folder)
    table = {
        f"{link}": f"{link} exists and is not a link to a pty: choose another path",
        f"{folder}": f"{folder} exists and is not a link to a pty: choose another path",
        f"{tmp_path}/no/x": f"{tmp_path}/no/x: the folder {tmp_path}/no does not exist: "
        "make it first",
        f"{tmp_path}/{'x' * 300}": f"{tmp_path}/{'x' * 300}: File name too long",
    }
    before = descriptors()
    for path, message in table.items():
        with pytest.raises(VconfsError) as caught:
            async with serving(f"pty:{path}"):
                pass
        assert str(caught.value) == message
    await until_only_open(before)
    assert link.readlink() == folder


async def test_a_link_that_was_changed_is_left(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    async with serving(f"pty:{link}"):
        link.unlink()
        link.symlink_to("elsewhere")
    assert link.is_symlink()


async def test_no_more_ptys_for_the_next_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    @contextmanager
    def fail() -> Iterator[None]:
        raise OSError(28, os.strerror(28))
        yield

    async with serving(f"pty:{tmp_path}/tty") as port:
        with monkeypatch.context() as full, opened(tmp_path / "tty"):
            await port.until_connected()
            full.setattr(ptys, "open_pty", fail)
            assert port.hang_up_client is not None
            port.hang_up_client()
            await until(lambda: caplog.records)
            assert not (tmp_path / "tty").is_symlink()
        await until((tmp_path / "tty").exists)
        with opened(tmp_path / "tty") as slave:
            os.write(slave, b"again")
            await port.until_received(b"again")
    assert [record.getMessage() for record in caplog.records] == [
        "port 3: cannot open a pty: No space left on device; trying again",
        "port 3: there is a pty again",
    ]


async def test_no_more_ptys(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def fail() -> Iterator[None]:
        raise OSError(28, os.strerror(28))
        yield

    monkeypatch.setattr(ptys, "open_pty", fail)
    with pytest.raises(VconfsError, match="cannot open a pty: No space left on device"):
        async with serving("pty"):
            pass


# --- stdio --------------------------------------------------------------------------------


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Pipes in place of our standard streams: the ends at which people would sit."""
    (stdin, keyboard), (screen, stdout) = os.pipe(), os.pipe()
    monkeypatch.setattr(stdio, "_STDIN", stdin)
    monkeypatch.setattr(stdio, "_STDOUT", stdout)
    yield keyboard, screen
    for descriptor in (stdin, stdout, keyboard, screen):
        try:
            os.close(descriptor)
        except OSError:  # a test has closed it
            continue


async def test_stdio_prints_also_after_the_inputs_end(streams: tuple[int, int]) -> None:
    keyboard, screen = streams
    async with serving("stdio") as port:
        os.write(keyboard, b"typed")
        await port.until_received(b"typed")
        os.close(keyboard)
        await trio.testing.wait_all_tasks_blocked(0.02)
        port.write(b"shown")
        await trio.lowlevel.wait_readable(screen)
        assert os.read(screen, 100) == b"shown"
        assert port.connected
        os.close(screen)
        await port.until_connected(False)


async def test_stdio_for_one_port(streams: tuple[int, int]) -> None:
    async with serving("stdio"):
        with pytest.raises(VconfsError, match="standard input and output are in use already"):
            async with serving("stdio"):
                pass
    async with serving("stdio") as port:
        assert port.connected


async def test_stdio_on_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").write_bytes(b"from a file")
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
        monkeypatch.setattr(stdio, "_STDIN", source.fileno())
        monkeypatch.setattr(stdio, "_STDOUT", sink.fileno())
        async with serving("stdio") as port:
            await port.until_received(b"from a file")
            port.write(b"to a file")
            while (tmp_path / "out").read_bytes() != b"to a file":
                await trio.lowlevel.checkpoint()
            assert port.connected


async def test_stdio_that_another_program_made_non_blocking(
    streams: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keyboard, screen = streams
    os.set_blocking(stdio._STDOUT, False)
    read, stolen = os.read, False

    def steal(descriptor: int, size: int) -> bytes:
        nonlocal stolen
        if descriptor == stdio._STDIN and not stolen:
            stolen = True
            raise BlockingIOError
        return read(descriptor, size)

    monkeypatch.setattr("vconfs.host.chardevs.stdio.os.read", steal)
    async with serving("stdio") as port:
        os.write(keyboard, b"typed")
        await port.until_received(b"typed")
        port.write(bytes(1 << 20))  # more than a pipe holds
        shown = 0
        while shown < 1 << 20:
            await trio.lowlevel.wait_readable(screen)
            shown += len(os.read(screen, 1 << 20))
        assert stolen and port.connected
    assert not caplog.records


async def test_stdio_on_a_disk_that_is_full_for_a_while(
    tmp_path: Path,
    streams: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    write, full = os.write, True

    def limited(descriptor: int, data: Buffer) -> int:
        if descriptor == stdio._STDOUT and full:
            raise OSError(28, os.strerror(28))
        return write(descriptor, data)

    monkeypatch.setattr("vconfs.host.chardevs.stdio.os.write", limited)
    async with serving("stdio") as port:
        port.write(b"kept")
        await until(lambda: caplog.records)
        full = False
        await trio.lowlevel.wait_readable(streams[1])
        assert os.read(streams[1], 100) == b"kept"
        assert port.connected
        await until(lambda: len(caplog.records) > 1)
    assert [record.getMessage() for record in caplog.records] == [
        "port 3: guest data could not be delivered: No space left on device; trying again",
        "port 3: guest data is delivered again",
    ]


# --- all of them --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "pipe", "pty"])
async def test_cancelled_amid_both_ways(kind: str, tmp_path: Path) -> None:
    before = descriptors()
    async with serving(f"{kind}:{tmp_path}/x") as port:
        port.throttle(True)
        if kind != "file":
            path = {"pipe": "x.in", "pty": "x"}[kind]
            slave = os.open(tmp_path / path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            os.write(slave, b"x" * 4000)
        for _ in range(100):
            port.write(bytes(1 << 16))
        await trio.testing.wait_all_tasks_blocked(0.02)
    if kind != "file":
        os.close(slave)
        assert not list(tmp_path.iterdir())
    await until_only_open(before)

"""Files, fifos, ptys, our own streams, and the chardevs without an outside."""

from __future__ import annotations

import os
import stat
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from vconfs.host.chardev import ChardevError, parse_chardev
from vconfs.host.chardevs import ptys, stdio
from vconfs.host.chardevs.paths import cannot
from vconfs.host.chardevs.ptys import Pty

from .chardev_port import FakePort, descriptors, serving


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (2, "/no/x: the folder /no does not exist: make it first"),
        (13, "/no/x: Permission denied: choose another path, or change who may write there"),
        (17, "/no/x exists: choose another path, or remove it"),
        (21, "/no/x: Is a directory"),
        (6, "/no/x: nobody reads it: start its reader first"),
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
    with pytest.raises(ChardevError, match="nobody reads it"):
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


async def test_a_disk_that_is_full_is_told_by_name() -> None:
    port = FakePort()
    port.write(b"x")
    with pytest.raises(ChardevError) as caught:
        await parse_chardev("file:/dev/full").run(port)
    assert str(caught.value) == "/dev/full: No space left on device"
    assert port.connects == 1 and not port.connected


async def test_no_fifo_is_left_where_the_other_cannot_be_made(tmp_path: Path) -> None:
    for name, make in (
        ("x.out", Path.touch),
        ("x.in", lambda path: path.symlink_to("nowhere")),
    ):
        path = tmp_path / name
        make(path)
        with pytest.raises(ChardevError, match=f"{path} exists"):
            async with serving(f"pipe:{tmp_path}/x"):
                pass
        assert list(tmp_path.iterdir()) == [path]
        path.unlink()


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
            pytest.fail("whoever writes feels nothing")
        for _ in range(100):
            port.write(bytes(1 << 16))
        await trio.testing.wait_all_tasks_blocked()
        assert len(port.queue) > 90
        port.throttle(False)
        await port.until_received(bytes(written))
        os.close(writer)


# --- ptys ---------------------------------------------------------------------------------


@contextmanager
def opened(path: Path | str) -> Iterator[int]:
    slave = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        yield slave
    finally:
        os.close(slave)


async def test_a_word_in_passing_is_heard(tmp_path: Path) -> None:
    async with serving(f"pty:{tmp_path}/tty") as port:
        for count in range(1, 4):
            with opened(tmp_path / "tty") as slave:
                os.write(slave, b"hi\n")
            await port.until(lambda: port.connects == count and not port.connected)  # noqa: B023
        assert port.received == b"hi\n" * 3


async def test_the_next_one_at_a_pty_finds_it_as_new(tmp_path: Path) -> None:
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


async def test_what_stands_where_the_link_should_be(tmp_path: Path) -> None:
    link, folder = tmp_path / "tty", tmp_path / "folder"
    folder.mkdir()
    link.symlink_to(folder)
    table = {
        f"{link}": f"{link} exists and is no link to a pty: choose another path",
        f"{folder}": f"{folder} exists and is no link to a pty: choose another path",
        f"{tmp_path}/no/x": f"{tmp_path}/no/x: the folder {tmp_path}/no does not exist: "
        "make it first",
        f"{tmp_path}/{'x' * 300}": f"{tmp_path}/{'x' * 300}: File name too long",
    }
    before = descriptors()
    for path, message in table.items():
        with pytest.raises(ChardevError) as caught:
            async with serving(f"pty:{path}"):
                pass
        assert str(caught.value) == message
    assert descriptors() == before
    assert link.readlink() == folder


async def test_a_link_that_was_changed_is_left(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    async with serving(f"pty:{link}"):
        link.unlink()
        link.symlink_to("elsewhere")
    assert link.is_symlink()


async def test_no_more_ptys(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def fail() -> Iterator[None]:
        raise OSError(28, os.strerror(28))
        yield

    monkeypatch.setattr(ptys, "open_pty", fail)
    with pytest.raises(ChardevError, match="there is no pty to be had: No space left on device"):
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
        with pytest.raises(ChardevError, match="stdio is joined to something else already"):
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
    assert descriptors() == before

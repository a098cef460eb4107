"""Programs that end too early, too late, or not at all."""

from __future__ import annotations

import logging
import os
import resource
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from inotify_simple import INotify, flags

import vconfs.system.descriptors
from tests.support.waiting import until
from tests.unit.host.chardevs.chardev_port import (
    FakePort,
    descriptors,
    serving,
    until_only_open,
)
from vconfs.host.chardevs import programs
from vconfs.system import shell_programs
from vconfs.system.shell_programs import start_program


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_PATIENCE", 0.1)
    monkeypatch.setattr(shell_programs, "_PATIENCE", 0.1)


async def a_line(port: FakePort) -> str:
    await port.until(lambda: b"\n" in port.received)
    return port.received.decode().splitlines()[0]


@contextmanager
def watched(pid: int) -> Iterator[int]:
    """Return a descriptor that is readable when the process has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def test_both_ways_and_again() -> None:
    async with serving("exec:echo hello; cat") as port:
        assert port.connected
        for _ in range(2):
            port.open()
            await port.until_received(b"hello\n")
            port.write(b"to and fro")
            await port.until_received(b"hello\nto and fro")
            port.close()
            await port.until(lambda: not port.queue)
            port.sent.clear()
        assert port.hang_ups == 0


async def test_all_output_before_the_hang_up() -> None:
    async with serving("exec:head -c 3000000 /dev/zero") as port:
        port.throttle(True)
        port.open()
        await trio.testing.wait_all_tasks_blocked(0.05)
        port.throttle(False)
        await port.until(lambda: port.hang_ups == 1)
        assert len(port.received) == 3_000_000
        assert port.connected
        port.write(b"nobody reads this any more")
        port.close()
        port.sent.clear()
        port.open()
        await port.until(lambda: port.hang_ups == 2)
        assert len(port.received) == 3_000_000


async def test_input_of_a_program_that_has_closed_its_output(tmp_path: Path) -> None:
    path = tmp_path / "out"
    async with serving(f"exec:exec cat > {path}") as port:
        with INotify() as changes:
            changes.add_watch(tmp_path, flags.MODIFY | flags.CLOSE_WRITE)
            port.open()
            port.write(b"one ")
            await trio.lowlevel.wait_readable(changes)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert port.hang_ups == 0
            port.write(b"two")
            port.close()
            while not any(event.mask & flags.CLOSE_WRITE for event in changes.read(timeout=0)):
                await trio.lowlevel.wait_readable(changes)
        assert path.read_bytes() == b"one two"


async def test_a_program_in_the_background_does_not_delay_the_close() -> None:
    async with serving("exec:sleep 1000 & echo $!") as port:
        port.open()
        pid = int(await a_line(port))
        await port.until(lambda: port.hang_ups == 1)
        with watched(pid) as ended:
            assert not select.select([ended], [], [], 0)[0], "it was left there to stay"
            os.kill(pid, signal.SIGKILL)
            await trio.lowlevel.wait_readable(ended)


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("echo $$; exec sleep 1000", 0),
        ("trap '' TERM; echo $$; while :; do sleep 1000; done", 0),
        ("sleep 1000 & echo $!; wait", 0),
        ("trap '' TERM; sleep 1000 & echo $!; wait", 0),
        # More than its pipe holds: this has its own time before the program is ended.
        ("echo $$; exec sleep 1000", 500_000),
        ("trap '' TERM; sleep 1000 & echo $!; wait", 500_000),
    ],
)
async def test_a_program_is_ended_after_the_close(command: str, written: int) -> None:
    async with serving(f"exec:{command}") as port:
        port.open()
        with watched(int(await a_line(port))) as ended:
            if written:
                port.patience = 0.2
                port.write(bytes(written))
            await trio.testing.wait_all_tasks_blocked(0.05)
            port.close()
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(ended)
        assert port.hang_ups == 0


async def test_the_next_open_waits_for_a_stubborn_program_and_gets_its_own() -> None:
    async with serving("exec:echo $$; exec sleep 1000") as port:
        port.open()
        first = await a_line(port)
        port.patience = 0.2
        port.write(bytes(500_000))
        port.close()
        port.open()
        port.sent.clear()
        assert await a_line(port) != first


async def test_a_program_that_ends_because_its_output_is_closed_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    program = await start_program(f"cat >/dev/null; cat '{go_on}'; echo late")
    close_output = program._stdout.aclose

    async def close_output_and_wait() -> None:
        await close_output()
        go_on.write_bytes(b"")
        await program.wait_end()

    monkeypatch.setattr(program._stdout, "aclose", close_output_and_wait)
    assert await program.end() == 0
    assert program.failure == ""


async def test_no_output_of_an_old_run_reaches_the_next() -> None:
    async with serving("exec:echo start; cat >/dev/null; echo late") as port:
        port.open()
        await port.until_received(b"start\n")
        port.close()
        port.open()
        await port.until_received(b"start\nstart\n")


async def test_a_program_that_cannot_be_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*args: object, **options: object) -> None:
        raise OSError(2, os.strerror(2))

    async with serving("exec:true") as port:
        with monkeypatch.context() as failing:
            failing.setattr(trio.lowlevel, "open_process", fail)
            port.open()
            await port.until(lambda: port.hang_ups == 1)
        port.close()
        port.open()
        await port.until(lambda: port.hang_ups == 2)
    assert "cannot run 'true': No such file or directory" in caplog.text


async def test_a_program_that_cannot_be_run_yet(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    failed = trio.Event()

    async def fail(*args: object, **options: object) -> None:
        failed.set()
        raise OSError(11, os.strerror(11))

    async with serving("exec:cat") as port:
        with monkeypatch.context() as failing:
            failing.setattr(trio.lowlevel, "open_process", fail)
            port.open()
            port.write(b"kept for it")
            await failed.wait()
        await port.until_received(b"kept for it")
        assert not port.hang_ups
    assert [record.getMessage() for record in caplog.records] == [
        "port 3: cannot run 'cat': Resource temporarily unavailable; trying again",
        "port 3: 'cat' runs again",
    ]


async def test_a_program_that_fails_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with serving("exec:no-such-program") as port:
        for count in (1, 2, 3):
            port.open()
            await port.until(lambda count=count: port.hang_ups == count)  # type: ignore[misc]
            port.close()
    assert caplog.messages == ["port 3: 'no-such-program' was not found (127)"]


async def test_another_failure_of_a_program_is_logged_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "script"
    async with serving(f"exec:. {script}") as port:
        for count, lines in enumerate(("exit 3", "exit 3", "true", "exit 3", "kill -9 $$"), 1):
            script.write_text(lines)
            port.open()
            await port.until(lambda count=count: port.hang_ups == count)  # type: ignore[misc]
            port.close()
    said = [message.partition("' ")[2] for message in caplog.messages]
    assert said == ["ended with exit code 3"] * 2 + ["was ended by signal 9"]


async def test_a_program_that_is_ended_by_us_has_not_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving("exec:echo hello; exec sleep 1000") as port:
        port.open()
        await port.until_received(b"hello\n")
        port.close()
        port.open()
        await port.until_received(b"hello\nhello\n")
    assert caplog.messages == []


async def test_what_a_program_does_not_read_is_counted() -> None:
    async with serving("exec:head -c 5 >/dev/null") as port:
        port.open()
        port.write(b"12345")
        await port.until(lambda: port.hang_ups == 1)
        port.write(b"6789")
        port.close()
        await port.until(lambda: not port.queue)
        assert port.counters.dropped == 4


async def test_output_of_a_program_without_a_reader_is_counted() -> None:
    async with serving("exec:echo hello; cat >/dev/null; echo too late") as port:
        port.open()
        await port.until_received(b"hello\n")
        port.close()
        port.open()
        await port.until_received(b"hello\nhello\n")
        assert port.counters.dropped == len(b"too late\n")


@pytest.mark.expect_log("trying again")
async def test_no_descriptor_to_watch_a_program_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    os.mkfifo(tmp_path / "pid")
    fifo = os.open(tmp_path / "pid", os.O_RDWR)
    open_pidfd, children = os.pidfd_open, []

    def fail(pid: int) -> int:
        child = int(os.read(fifo, 100))  # waits until the shell has started it
        children.append(open_pidfd(child))
        if len(children) > 1:
            return open_pidfd(pid)
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr("vconfs.system.shell_programs.os.pidfd_open", fail)
    async with serving(f"exec:sleep 1000 & echo $! >{tmp_path}/pid; wait") as port:
        port.open()
        await until(lambda: len(children) == 2)  # it is tried again
        await trio.lowlevel.wait_readable(children[0])
        assert not port.hang_ups
    for child in children:
        os.close(child)
    os.close(fifo)
    await until_only_open(before)


@pytest.mark.parametrize(
    "command", ["echo $$; exec cat", "trap '' TERM; sleep 1000 & echo $!; yes; wait"]
)
async def test_cancelled_amid_all(command: str) -> None:
    before = descriptors()
    async with serving(f"exec:{command}") as port:
        port.open()
        pid = int(await a_line(port))
        port.throttle(True)
        port.write(bytes(1_000_000))
        await trio.testing.wait_all_tasks_blocked(0.02)
        ended = os.pidfd_open(pid)
    await trio.lowlevel.wait_readable(ended)
    os.close(ended)
    await until_only_open(before)


async def test_a_program_has_the_limit_of_descriptors_that_we_were_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(vconfs.system.descriptors, "_usual_limit", None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    try:
        vconfs.system.descriptors.allow_all_descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        async with serving("exec:ulimit -S -n; ulimit -H -n") as port:
            port.open()
            await port.until_received(b"500\n%d\n" % hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

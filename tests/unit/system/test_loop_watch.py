"""What the watch of the event loop sees of steps that compute, are blocked, or have to wait."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from vconfs.system.loop_watch import LIMIT, VARIABLE, LoopWatch, Step, watch_loop_if_asked

LONG = 1.5 * LIMIT


def compute() -> None:
    end = time.thread_time() + LONG
    while time.thread_time() < end:
        pass


def block() -> None:
    time.sleep(LONG)


async def act_and_wait(act: object) -> None:
    await trio.lowlevel.checkpoint()
    assert callable(act)
    act()
    await trio.lowlevel.checkpoint()


def steps_of(act: object, *, counts: bool = True) -> tuple[list[Step], Step | None]:
    """Return the steps that were reported, and the longest."""
    reported: list[Step] = []
    watch = LoopWatch(reported.append, lambda task: counts)
    with watch.running():
        trio.run(act_and_wait, act, instruments=[watch])
    return reported, watch.longest


def test_a_step_that_computes_is_reported() -> None:
    [step], longest = steps_of(compute)
    assert step is longest
    assert step.cpu > LIMIT
    assert step.away >= step.cpu
    assert step.task.endswith("act_and_wait")


def test_a_step_that_is_blocked_is_reported() -> None:
    [step], _ = steps_of(block)
    assert step.away > LIMIT > step.cpu
    assert "ms blocked" in str(step)


def test_short_steps_are_only_compared() -> None:
    reported, longest = steps_of(lambda: None)
    assert reported == []
    assert longest is not None
    assert longest.away < LIMIT


def test_steps_of_other_tasks_do_not_count() -> None:
    assert steps_of(compute, counts=False) == ([], None)


def test_waiting_for_a_processor_does_not_count() -> None:
    """Another program of the same processor runs, with priority."""
    processor = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, [{processor}])\nprint(flush=True)\nwhile True: pass"
    before = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as spinner:
        try:
            assert spinner.stdout is not None
            spinner.stdout.readline()
            os.sched_setaffinity(0, [processor])

            def compute_a_little() -> None:
                begun, end = time.monotonic(), time.thread_time() + LIMIT / 2
                while time.thread_time() < end:
                    pass
                assert time.monotonic() - begun > LIMIT * 0.7

            reported, longest = steps_of(compute_a_little)
        finally:
            os.sched_setaffinity(0, before)
            spinner.send_signal(signal.SIGKILL)
    assert reported == []
    assert longest is not None
    assert longest.away < LIMIT * 0.7


async def watch_and(act: object) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_loop_if_asked)
        await trio.testing.wait_all_tasks_blocked()
        await act_and_wait(act)
        nursery.cancel_scope.cancel()


def test_a_daemon_logs_long_steps_and_the_longest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    with caplog.at_level(logging.INFO, "vconfs"):
        trio.run(watch_and, compute)
    away, longest = (record.getMessage() for record in caplog.records)
    assert away.startswith("the event loop was away: 1")
    assert longest == f"the longest that {away}"


@pytest.mark.parametrize("asked", [None, ""])
def test_a_daemon_that_is_not_asked_watches_nothing(
    asked: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(VARIABLE)
    if asked is not None:
        monkeypatch.setenv(VARIABLE, asked)
    with caplog.at_level(logging.INFO, "vconfs"):
        trio.run(watch_loop_if_asked)
    assert caplog.records == []


def test_the_lines_can_go_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "log"))
    with caplog.at_level(logging.INFO, "vconfs"):
        trio.run(watch_and, compute)
    assert caplog.records == []
    away, longest = (tmp_path / "log").read_text().splitlines()
    assert f"vconfs[{os.getpid()}]: the event loop was away: 1" in away
    assert "the longest that the event loop was away: 1" in longest


def test_a_file_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/none/log")
    with caplog.at_level(logging.INFO, "vconfs"):
        trio.run(watch_and, lambda: None)
    assert caplog.records[0].getMessage() == (
        f"{VARIABLE}: {tmp_path}/none/log: No such file or directory; logging here"
    )

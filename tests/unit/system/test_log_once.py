"""Logs that say a thing once, with a count."""

from __future__ import annotations

import logging
from io import StringIO

import pytest
import trio
import trio.testing

from vconfs.system.log_counts import tell_of_repeats
from vconfs.system.log_once import LineLimit, LogOnce

log = logging.getLogger("vconfs.test")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_kind_is_logged_at_once_and_then_its_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    once = LogOnce(log, clock)
    for number in range(387):
        once.warning("pty", "vcon%d has no pty", number)
    once.warning("other", "something else")
    assert caplog.messages == ["vcon0 has no pty", "something else"]
    clock.now = 60
    once.tell()
    assert caplog.messages[2:] == ["vcon0 has no pty (386 more times)"]


def test_counts_come_at_longer_and_longer_intervals_while_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    once = LogOnce(log, clock)
    told = []
    for clock.now in range(0, 24 * 3600, 10):
        before = len(caplog.messages)
        once.warning("lost", "lost")
        if len(caplog.messages) > before:
            told.append(clock.now)
    assert told[:5] == [0, 60, 180, 420, 900]
    assert len(told) < 30


def test_what_comes_back_after_a_quiet_time_is_logged_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    once = LogOnce(log, clock)
    once.warning("lost", "lost")
    clock.now = 61
    once.tell()
    once.warning("lost", "lost again")
    assert caplog.messages == ["lost", "lost again"]


def test_kinds_without_end_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    once = LogOnce(log, Clock())
    for number in range(3000):
        once.warning(number, "%d", number)
    assert len(caplog.messages) == 1001
    once.tell(end=True)
    assert caplog.messages[1001:] == ["further trouble of other kinds (1999 more times)"]


def test_lines_of_one_call_are_bounded_and_counted() -> None:
    clock, output = Clock(), StringIO()
    handler = logging.StreamHandler(output)
    limit = LineLimit(clock)
    handler.addFilter(limit)
    log.addHandler(handler)
    try:
        for number in range(3000):
            log.warning("front-end turned away: %d", number)
        log.warning("another line")
        clock.now = 60
        limit.tell()
        log.warning("front-end turned away: %d", 3000)
    finally:
        log.removeHandler(handler)
    assert output.getvalue().splitlines() == [
        *(f"front-end turned away: {number}" for number in range(20)),
        "another line",
        "2980 more lines like this one were left out: front-end turned away: 2999",
        "front-end turned away: 3000",
    ]


def test_a_limit_on_two_handlers_counts_a_line_once() -> None:
    limit = LineLimit(Clock())
    record = logging.LogRecord("vconfs", logging.WARNING, "", 0, "line", (), None)
    assert all(limit.filter(record) for _ in range(100))


async def test_counts_are_logged_in_time_and_at_the_end(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock()
    once = LogOnce(logging.getLogger("vconfs.test.counts"), clock)

    def logged() -> list[str]:
        return [line.getMessage() for line in caplog.records if line.name == "vconfs.test.counts"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell_of_repeats)
        for _ in range(3):
            once.warning("kind", "trouble")
        clock.now = 60
        await trio.sleep(61)
        assert logged() == ["trouble", "trouble (2 more times)"]
        once.warning("kind", "trouble")
        nursery.cancel_scope.cancel()
    assert logged()[2:] == ["trouble (1 more times)"]

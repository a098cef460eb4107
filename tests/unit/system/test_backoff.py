"""Pauses between tries, and what the log says of a trouble."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from vconfs.system.backoff import Backoff, Pauses


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines that the log has so far."""
    caplog.set_level(logging.INFO)

    class Lines(list[str]):
        def __eq__(self, other: object) -> bool:
            return [record.getMessage() for record in caplog.records] == other

    return Lines()


def tries(first: float = 1, last: float = 8) -> Backoff:
    return Backoff("it", "it works again", Pauses(first, last))


@pytest.mark.expect_log("trying again")
async def test_pauses_grow_up_to_the_last(autojump_clock: trio.testing.MockClock) -> None:
    it, times = tries(), []
    for _ in range(6):
        begun = trio.current_time()
        await it.failed("full")
        times.append(trio.current_time() - begun)
    assert times == [1, 2, 4, 8, 8, 8]


async def test_the_log_has_the_beginning_and_the_end(
    autojump_clock: trio.testing.MockClock, said: list[str]
) -> None:
    it = tries()
    it.succeeded()
    for _ in range(100):
        await it.failed("full")
    assert said == ["it: full; trying again"]
    it.succeeded()
    it.succeeded()
    assert said == ["it: full; trying again", "it works again"]
    await it.failed("full")
    assert said == ["it: full; trying again", "it works again", "it: full; trying again"]


async def test_each_reason_is_logged_once_and_not_without_end(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    it = tries()
    for number in range(100):
        await it.failed("full")
        await it.failed("gone")
        await it.failed(f"reason {number} of a peer")
    assert caplog.text.count("full") == caplog.text.count("gone") == 1
    assert len(caplog.records) == 8


@pytest.mark.expect_log("trying again")
async def test_a_pause_ends_when_a_try_is_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    it = tries(first=1000, last=1000)
    it.try_now()  # there is no pause now, and none that is cut short later
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.failed, "full")
        await trio.sleep(3)
        it.try_now()
        it.try_now()
    assert trio.current_time() == pytest.approx(3)
    begun = trio.current_time()
    await it.wait()
    assert trio.current_time() - begun == 1000


@pytest.mark.parametrize(("lasted", "pause"), [(0, 4), (8, 4), (9, 1)])
@pytest.mark.expect_log("trying again")
async def test_only_a_success_that_lasts_shortens_the_pauses(
    lasted: float, pause: float, autojump_clock: trio.testing.MockClock
) -> None:
    it = tries()
    await it.failed("full")
    await it.failed("full")
    it.succeeded()
    await trio.sleep(lasted)
    begun = trio.current_time()
    await it.failed("full")
    assert trio.current_time() - begun == pause

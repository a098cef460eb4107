"""When the host is told of a port that is open and idle, by a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from tests.unit.guest.test_port import FakeLine, make_port
from vconfs.guest.idle_opens import IDLE_SECONDS, IdleOpens
from vconfs.guest.port import Opener, Port


@pytest.fixture
async def opens(autojump_clock: trio.testing.MockClock) -> AsyncIterator[IdleOpens]:
    opens = IdleOpens()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opens.run)
        yield opens
        nursery.cancel_scope.cancel()


def opened(opens: IdleOpens) -> tuple[Port, FakeLine, Opener]:
    port, line = make_port()
    opener = Opener(1)
    port.open(opener, quiet=True)
    opens.add(port, opener)
    return port, line, opener


async def test_the_host_is_told_of_a_port_that_stays_open(opens: IdleOpens) -> None:
    _, line, _ = opened(opens)
    await trio.sleep(IDLE_SECONDS * 0.9)
    assert line.told == []
    await trio.sleep(IDLE_SECONDS * 0.2)
    assert line.told == [("open", 3, True)]


async def test_each_port_has_its_own_time(opens: IdleOpens) -> None:
    lines = []
    for _ in range(3):
        lines.append(opened(opens)[1])
        await trio.sleep(IDLE_SECONDS / 2)
    await trio.sleep(IDLE_SECONDS / 4)
    assert [bool(line.told) for line in lines] == [True, True, False]
    await trio.sleep(IDLE_SECONDS / 2)
    assert lines[2].told == [("open", 3, True)]


async def test_the_host_is_not_told_of_a_port_that_was_closed_before(opens: IdleOpens) -> None:
    port, line, opener = opened(opens)
    _, other, _ = opened(opens)
    await trio.sleep(IDLE_SECONDS / 2)
    opens.discard(opener)
    port.close(opener)
    await trio.sleep(IDLE_SECONDS)
    assert line.told == []
    assert other.told == [("open", 3, True)]


async def test_the_host_is_told_once_of_a_port_that_was_used_before(opens: IdleOpens) -> None:
    port, line, _ = opened(opens)
    port.write_nowait(b"x")
    await trio.sleep(IDLE_SECONDS * 2)
    assert line.told == [("open", 3, True)]


async def test_many_opens_and_closes_leave_nothing(opens: IdleOpens) -> None:
    for _ in range(1000):
        port, line, opener = opened(opens)
        await trio.lowlevel.checkpoint()
        opens.discard(opener)
        port.close(opener)
        assert line.told == []
    assert not opens._waiting
    _, line, _ = opened(opens)
    await trio.sleep(IDLE_SECONDS * 2)
    assert line.told == [("open", 3, True)]

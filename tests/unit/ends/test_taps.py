"""What a tap records is what passes through the ports, once and in order, at both ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from attrs import frozen

from tests.support.waiting import until
from vconfs.guest.port import Opener
from vconfs.guest.ports import PortManager
from vconfs.host.spec import parse_port
from vconfs.link.taps import Tapper, Taps
from vconfs.protocol import tap
from vconfs.protocol.lines import LineReader
from vconfs.protocol.tap import Record
from vconfs.system.tasks import PORTION
from vconfs.testing import Ends, open_ends


@frozen
class Watched:
    """The records that a tapper of one end has got."""

    taps: Taps[Any]
    tapper: Tapper

    def records(self) -> list[Record]:
        data = b"".join(self.tapper.backlog.take(1 << 30))
        return [tap.parse(line) for line in LineReader(1 << 30).feed(data)]

    def seen(self) -> list[tuple[str, bytes]]:
        return [(record.event, record.data) for record in self.records()]


def watch(taps: Taps[Any], *ids: int) -> Watched:
    tapper = Tapper(lambda: None, frozenset(ids) if ids else None)
    taps.begin(tapper)
    return Watched(taps, tapper)


@pytest.fixture(params=["v8", "virtio1"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    """Two ports that echo."""
    specs = [parse_port("a=echo"), parse_port("b=echo")]
    with trio.fail_after(20):
        async with open_ends(specs, dialect=request.param) as both:
            await until(lambda: len(both.ports) == 2 and all(p.name for p in both.ports.values()))
            await until(lambda: all(port.host_connected for port in both.ports.values()))
            yield both


async def test_a_round_trip_is_seen_in_order_at_both_ends(ends: Ends) -> None:
    guest, host = watch(ends.manager.taps, 1), watch(ends.host.taps, 1)
    port, opener = ends.ports[1], Opener(12, b"cat")
    port.open(opener)
    assert port.write_nowait(b"question") == 8
    assert b"".join(await port.read(100, opener)) == b"question"
    port.close(opener)
    assert guest.seen() == [
        ("present", b""),
        ("open", b""),
        ("out", b"question"),
        ("in", b"question"),
        ("close", b""),
    ]
    await until(lambda: not ends.host.ports[1].guest_connected)
    assert host.seen() == [
        ("present", b""),
        ("open", b""),
        ("in", b"question"),
        ("out", b"question"),
        ("close", b""),
    ]


async def test_all_that_passes_is_seen_once_whatever_its_size(ends: Ends) -> None:
    guest, host = watch(ends.manager.taps), watch(ends.host.taps)
    port, opener = ends.ports[0], Opener(12)
    sent = bytes(range(256)) * 1500
    back = bytearray()
    port.open(opener)

    async def send() -> None:
        rest = memoryview(sent)
        while rest:
            rest = rest[await port.write(rest) :]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while len(back) < len(sent):
            back += b"".join(await port.read(1 << 16, opener))
    assert bytes(back) == sent
    for watched in (guest, host):
        records = watched.records()
        for event in ("in", "out"):
            assert b"".join(record.data for record in records if record.event == event) == sent


async def test_data_that_waits_for_its_turn_is_seen_when_it_goes(ends: Ends) -> None:
    guest = watch(ends.manager.taps)
    ends.ports[0].open(Opener(1))
    assert ends.ports[0].write_nowait(b"now", nonblock=True) == 3
    await until(lambda: ends.ports[0].queued == 3)
    assert [data for event, data in guest.seen() if event == "out"] == [b"now"]


async def test_a_port_that_is_not_chosen_has_no_tap(ends: Ends) -> None:
    watched = watch(ends.manager.taps, 1, 7)
    assert ends.ports[0].tap is None
    assert ends.ports[1].tap is not None
    ends.ports[0].open(Opener(1))
    ends.ports[0].write_nowait(b"other")
    assert watched.seen() == [("present", b"")]
    watched.taps.end(watched.tapper)
    assert ends.ports[1].tap is None
    assert not ends.manager.taps.by_port


async def test_a_port_that_comes_and_goes_is_seen(ends: Ends) -> None:
    guest, host = watch(ends.manager.taps, 2), watch(ends.host.taps, 2)
    await ends.host.add(parse_port("c=echo"))
    await until(lambda: 2 in ends.ports and ends.ports[2].host_connected)
    ends.host.remove(2)
    await until(lambda: 2 not in ends.ports)
    events = [event for event, _ in guest.seen()]
    assert (events[0], events[-1]) == ("add", "remove")
    assert events.count("connect") == events.count("disconnect") == 1
    assert 2 not in ends.manager.taps.by_port
    assert [event for event, _ in host.seen()] == ["add", "remove"]
    assert 2 not in ends.host.taps.by_port


# --- many ports ---------------------------------------------------------------------------


def shown(manager: PortManager, tapper: Tapper) -> list[int | None]:
    """Return the ids of the ports that were shown to be there."""
    records = Watched(manager.taps, tapper).records()
    return [record.id for record in records if record.event == "present"]


async def test_the_tap_of_many_ports_begins_in_portions() -> None:
    manager, tapper, gone = PortManager(), Tapper(lambda: None), Tapper(lambda: None)
    for port_id in range(1000):
        manager.add(port_id)
    manager.taps.begin(gone)
    manager.taps.end(gone)
    manager.taps.begin(tapper)
    first = shown(manager, tapper)
    assert first == list(range(PORTION))
    manager.remove(999)
    await trio.testing.wait_all_tasks_blocked()
    assert first + shown(manager, tapper) == list(range(999))
    assert shown(manager, gone) == list(range(PORTION))
    tapper.wanted = frozenset({3})
    manager.taps.begin(tapper)
    await trio.testing.wait_all_tasks_blocked()
    assert shown(manager, tapper) == [3]
    assert list(manager.taps.by_port) == [3]

"""A peer that sends what it may not: each wrong thing, and its exact outcome."""

from __future__ import annotations

import struct

import pytest

from tests.unit.ends.test_ends import spec, taken
from vconfs.link.link import Link
from vconfs.protocol import v8
from vconfs.testing import Ends, open_ends


def host_link(ends: Ends) -> Link:
    """The link on which the host end sends."""
    assert ends.host.guest is not None
    return ends.host.guest._link


def from_host(ends: Ends, *buffers: bytes) -> None:
    link = host_link(ends)
    for buffer in buffers:
        assert link.find_buffer(v8.INPUT, 1)
        link.send(v8.INPUT, buffer, b"")
    link.flush(v8.INPUT)


def from_guest(ends: Ends, *buffers: bytes) -> None:
    link = ends.driver._link
    for buffer in buffers:
        assert link.find_buffer(v8.OUTPUT, 1)
        link.send(v8.OUTPUT, buffer, b"")
    link.flush(v8.OUTPUT)


def header(port_id: int, flags: int = 0, size: int = 0) -> bytes:
    return struct.pack("<III", port_id, flags, size)


GOOD = header(0, 0, 4) + b"good"


@pytest.mark.parametrize(
    ("buffer", "on_the_port"),
    [
        (b"", False),
        (b"short", False),
        (header(0)[:11], False),
        (header(99) + b"data for nobody", False),
        (header(2**32 - 1) + b"data", False),
        (header(0, 1), True),
        (header(0, 1) + b"\0\0\1", True),
        (header(0, 1) + struct.pack("<HH", 77, 1), True),
        (header(0, 1) + struct.pack("<HH", 2, 0), True),
        (header(0, 1) + struct.pack("<HH", 1, 1) + bytes(60_000), True),
        (header(0, 1) + struct.pack("<HH", 8, 1) + b"12", True),
        (header(99, 1) + struct.pack("<HH", 0, 1), False),
        (header(99, 1) + struct.pack("<HH", 4, 1), False),
        (header(2**31, 1) + struct.pack("<HH", 6, 1), False),
    ],
)
@pytest.mark.expect_log(
    "CONSOLE_PORT with value",
    "for unknown port",
    "is longer than",
    "is too large",
    "is too short",
    "no complete header",
    "unknown control event",
)
async def test_a_wrong_buffer_of_the_hosts_is_counted_and_changes_nothing(
    buffer: bytes, on_the_port: bool
) -> None:
    """A defect of the v8 patch: an unknown port id stopped the receive loop."""
    async with open_ends([spec(b"name")]) as ends:
        port = ends.ports[0]
        from_host(ends, buffer, GOOD)
        assert taken(port.read_nowait(100)) == b"good"
        assert (ends.manager.ignored, port.counters.ignored) == ((0, 1) if on_the_port else (1, 0))
        assert (port.name, port.host_connected, port.host_throttled) == (b"name", True, False)
        assert list(ends.ports) == [0]
        assert ends.driver.reason == ""


async def test_strange_but_harmless_sizes_and_flags_of_data() -> None:
    async with open_ends([spec()]) as ends:
        from_host(ends, header(0, 0, 2**32 - 1) + b"a", header(0, 0xFFFFFFFE, 7) + b"b", header(0))
        assert taken(ends.ports[0].read_nowait(100)) == b"ab"


async def test_a_second_name_replaces_the_first() -> None:
    """A defect of the v8 patch: the first one leaked."""
    async with open_ends([spec(b"first")]) as ends:
        from_host(ends, header(0, 1) + struct.pack("<HH", 1, 1) + b"second\0")
        assert ends.ports[0].name == b"second"
        from_host(ends, header(0, 1) + struct.pack("<HH", 1, 1))
        assert ends.ports[0].name == b""


async def test_cache_buffers_0_takes_caching_back() -> None:
    """A defect of the v8 patch: it was ignored."""
    async with open_ends([spec(cache=True)]) as ends:
        assert ends.ports[0].cache
        from_host(ends, header(0, 1) + struct.pack("<HH", 3, 0))
        assert not ends.ports[0].cache


@pytest.mark.parametrize(
    "buffer",
    [
        b"",
        b"short",
        header(99) + b"data for nobody",
        header(0, 1),
        header(0, 1) + struct.pack("<HH", 77, 1),
        header(0, 1) + struct.pack("<HH", 2, 1),
        header(99, 1) + struct.pack("<HH", 0, 1),
    ],
)
async def test_a_wrong_buffer_of_the_guests_is_logged_and_changes_nothing(
    buffer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_ends([spec(cache=True)]) as ends:
        attached, port = ends.host.guest, ends.host.ports[0]
        assert attached is not None
        from_guest(ends, buffer, GOOD)
        assert await port.receive() == b"good"
        assert attached.reason == ""
    assert sum(line.startswith("guest: ") for line in caplog.messages) == 1


async def test_a_guest_that_asks_for_a_missing_port_gets_an_error() -> None:
    async with open_ends([spec()]) as ends:
        from_guest(ends, header(7, 1) + struct.pack("<HH", 1, 0))
        assert list(ends.ports) == [0]


@pytest.mark.parametrize("side", ["used", "avail"])
@pytest.mark.expect_log("device lost", "guest lost")
async def test_an_index_that_jumps_loses_the_device_and_hangs_the_ports_up(side: str) -> None:
    async with open_ends([spec()]) as ends:
        link = ends.driver._link
        layout = link.layout(v8.INPUT if side == "used" else v8.OUTPUT)  # type: ignore[attr-defined]
        queue = link._receive[0]  # type: ignore[attr-defined]
        at = layout.used if side == "used" else layout.avail
        struct.pack_into("<H", queue.memory, at + 2, 40_000)
        if side == "used":
            link.interrupt(v8.INPUT)  # type: ignore[attr-defined]
            assert "queue 0: used.idx jumped" in ends.driver.reason
            assert not ends.ports[0].attached
        else:
            host_link(ends).kicked(v8.OUTPUT)  # type: ignore[attr-defined]
            assert ends.host.guest is not None
            assert "queue 1: avail.idx jumped" in ends.host.guest.reason
            assert not ends.host.ports[0].guest_connected

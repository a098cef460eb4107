"""One port never stops another: turns are counted, in what comes in on the other side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from attrs import frozen

from tests.support.devices import DEVICES, OpenDevice
from vconfs.device.embedded import open_embedded
from vconfs.guest.driver import drive
from vconfs.guest.port import Opener, Port, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.host.host import open_host
from vconfs.host.port import HostPort, HostPortSpec
from vconfs.testing import Puppet

LINKS: Mapping[str, OpenDevice] = {
    **DEVICES,
    "virtio1": lambda host, manager, folder: drive(manager, open_embedded(host, "virtio1")),
}

#: What may be under way on any of them beside what is counted: rings, sockets, what waits.
UNDER_WAY = 2 << 20
HELPING = 100_000
#: Turns that each of the others may have: one while we queue up, and one for each task switch
#: from the test to the sender, and from the receiver to the test.
TURNS = 3
FLOODERS = 30
#: The port that is not to be held up; the flooding ones come before it.
QUIET = FLOODERS


@frozen
class Ends:
    """Both ends, with a puppet on each port and everybody listening."""

    guest: Mapping[int, Port]
    host: Mapping[int, HostPort]

    def came(self, upward: bool) -> int:
        """How many bytes of the flooding ports have come to the other side."""
        ports = self.host.values() if upward else self.guest.values()
        return sum(port.counters.bytes_in for port in ports if port.id != QUIET)


@pytest.fixture(params=LINKS)
async def ends(
    request: pytest.FixtureRequest, tmp_path: Path, nursery: trio.Nursery
) -> AsyncIterator[Ends]:
    specs = [
        HostPortSpec(b"p%d" % port_id, Puppet(), host_limit=1 << 17)
        for port_id in range(FLOODERS + 1)
    ]
    manager = PortManager(lambda port_id: PortOptions(throttle="block"))
    async with open_host(specs) as host, LINKS[request.param](host, manager, tmp_path):
        while len([p for p in manager.ports.values() if p.host_connected]) <= FLOODERS:
            await trio.lowlevel.checkpoint()
        for port in manager.ports.values():
            port.open(Opener(1))
        yield Ends(manager.ports, cast(Mapping[int, HostPort], host.ports))


async def _forever(step: Callable[[], Awaitable[object]]) -> None:
    while True:
        await step()
        await trio.lowlevel.checkpoint()


def flood(nursery: trio.Nursery, ends: Ends, upward: bool) -> None:
    """Send on every port but the quiet one without end, one helping at a time."""
    for port_id in range(FLOODERS):
        send = ends.guest[port_id].write if upward else ends.host[port_id].send
        nursery.start_soon(_forever, partial(send, bytes(HELPING)))


def drain(nursery: trio.Nursery, ends: Ends, upward: bool) -> None:
    """Read what floods, without end."""
    for port_id in range(FLOODERS):
        guest = partial(ends.guest[port_id].read, HELPING)
        nursery.start_soon(_forever, ends.host[port_id].receive if upward else guest)


async def exchange(ends: Ends, upward: bool) -> int:
    """Send one byte on the quiet port; how much of the others came before it did."""
    guest, host = ends.guest[QUIET], ends.host[QUIET]
    before = ends.came(upward)
    async with trio.open_nursery() as nursery:
        if upward:
            nursery.start_soon(guest.write, b"!")
            assert await host.receive() == b"!"
        else:
            nursery.start_soon(host.send, b"!")
            assert b"".join(await guest.read(10)) == b"!"
    return ends.came(upward) - before


upward = pytest.mark.parametrize("upward", [True, False], ids=["to-host", "to-guest"])


@upward
@pytest.mark.expect_log("guest lost")
async def test_a_quiet_port_among_many_that_flood_waits_for_a_turn_of_each(
    ends: Ends, upward: bool, nursery: trio.Nursery
) -> None:
    flood(nursery, ends, upward)
    drain(nursery, ends, upward)
    for _ in range(10):
        assert await exchange(ends, upward) <= TURNS * FLOODERS * HELPING + UNDER_WAY


@upward
@pytest.mark.expect_log("guest lost")
async def test_flooding_ports_get_equal_shares(
    ends: Ends, upward: bool, nursery: trio.Nursery
) -> None:
    flood(nursery, ends, upward)
    drain(nursery, ends, upward)
    side: Mapping[int, Port | HostPort] = ends.host if upward else ends.guest
    while ends.came(upward) < 6 * FLOODERS * HELPING:
        await trio.lowlevel.checkpoint()
    got = [side[port_id].counters.bytes_in for port_id in range(FLOODERS)]
    assert max(got) - min(got) <= max(got) // 2 + HELPING


@upward
@pytest.mark.expect_log("guest lost")
async def test_unread_ports_stop_no_other(ends: Ends, upward: bool, nursery: trio.Nursery) -> None:
    flood(nursery, ends, upward)
    await settled(ends, upward)
    for _ in range(10):
        assert await exchange(ends, upward) == 0


async def settled(ends: Ends, upward: bool) -> None:
    """Wait until nothing more comes, because everybody is throttled."""
    before = -1
    while (now := ends.came(upward)) != before:
        before = now
        await trio.testing.wait_all_tasks_blocked(0.05)


@upward
@pytest.mark.expect_log("guest lost")
async def test_a_thousand_small_writers_all_get_through(ends: Ends, upward: bool) -> None:
    count = 1000
    got = dict.fromkeys(range(FLOODERS), b"")

    async def read(port_id: int) -> None:
        expected = len(range(port_id, count, FLOODERS)) * 5
        while len(got[port_id]) < expected:
            if upward:
                got[port_id] += await ends.host[port_id].receive()
            else:
                got[port_id] += b"".join(await ends.guest[port_id].read(100))

    async with trio.open_nursery() as nursery:
        for port_id in range(FLOODERS):
            nursery.start_soon(read, port_id)
        for number in range(count):
            port_id, line = number % FLOODERS, b"%04d\n" % number
            send = ends.guest[port_id].write if upward else ends.host[port_id].send
            nursery.start_soon(send, line)
        assert await exchange(ends, upward) <= 5 * count
    for port_id in range(FLOODERS):
        assert sorted(map(int, got[port_id].split())) == list(range(port_id, count, FLOODERS))

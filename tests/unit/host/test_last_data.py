"""What a guest has in its rings when it leaves: all of it is taken, in turns of bounded work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio

from vconfs.host._attached_guest import AttachedGuest
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPortSpec
from vconfs.host.rings import DeviceLink
from vconfs.protocol import virtio1
from vconfs.protocol.virtqueue import DeviceQueue, DriverQueue, GuestMemory, Layout
from vconfs.testing import Puppet

#: The most ports of a guest behind vhost-user, and the buffers of our own guest end.
PORTS = 127
BUFFERS, SIZE = 8, 1 << 17
ALL = PORTS * BUFFERS * SIZE


@asynccontextmanager
async def full_guest() -> AsyncIterator[tuple[Host, AttachedGuest]]:
    """Attach a guest whose rings are all full; its buffers share their memory."""
    specs = [HostPortSpec(b"", Puppet(connected=False)) for _ in range(PORTS)]
    end = virtio1.HostEnd(virtio1.FEATURES, max_ports=PORTS)
    memory = memoryview(bytearray(end.queues * 4096 + SIZE))
    layouts = [Layout.at(BUFFERS, 4096 * queue) for queue in range(end.queues)]
    shared = GuestMemory([(0, memory)])
    async with open_host(specs) as host:
        link = DeviceLink({}, features=0, call=lambda queue: None, header_size=0)
        guest = host.attach(link, end, lambda: None)
        for queue, layout in enumerate(layouts):
            link.start_queue(queue, DeviceQueue(shared, layout))
        for port in host.ports.values():
            guest._introduce(port)
            driver = DriverQueue(memory, layouts[2 * port.id + 3 if port.id else 1])
            for _ in range(BUFFERS):
                driver.add(end.queues * 4096, SIZE, writable=False)
            driver.publish()
        yield host, guest


def taken(host: Host) -> int:
    return sum(port.counters.bytes_in for port in host.ports.values())


async def test_all_of_it_is_taken_and_other_tasks_have_turns() -> None:
    async with full_guest() as (host, guest), trio.open_nursery() as nursery:
        seen = [0]

        @nursery.start_soon
        async def others() -> None:
            while True:
                await trio.lowlevel.checkpoint()
                seen.append(taken(host))

        await guest.take_rest()
        nursery.cancel_scope.cancel()
    assert taken(host) == ALL
    # The order of tasks changes: two turns of taking can be between two turns of the others.
    assert max(after - before for before, after in pairwise(seen)) <= 2 * (24 << 20)


@pytest.mark.expect_log("guest lost")
async def test_a_guest_that_is_lost_at_once_has_one_turn() -> None:
    async with full_guest() as (host, guest):
        guest.lost("for this test")
        assert 32 << 20 <= taken(host) <= 48 << 20

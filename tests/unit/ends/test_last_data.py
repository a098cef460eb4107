"""What is in the rings when an end is lost: the other end receives it, and nothing is missing."""

from __future__ import annotations

from contextlib import suppress
from typing import cast

import pytest
import trio
import trio.testing

from tests.unit.ends.test_ends import spec
from tests.unit.ends.test_throttle import Pair, late_ends, look
from vconfs.device._rings import RingLink
from vconfs.guest.driver import Driver
from vconfs.guest.port import Opener, PortOptions
from vconfs.host.host import Host
from vconfs.host.port import HostPort
from vconfs.host.rings import DeviceLink
from vconfs.testing import Ends, Puppet, open_ends

LIMIT = 1000


def fill(ends: Ends, puppet: Puppet) -> tuple[int, int]:
    """Send both ways until nothing more is taken; return how much was, to the host and to it."""
    guest = ends.ports[0]
    guest.open(Opener(1))
    to_host = to_guest = 0
    with suppress(trio.WouldBlock, OSError):
        while True:
            to_host += guest.write_nowait(bytes(1000))
    while sent := puppet.port.send_nowait(bytes(1000)):
        to_guest += sent
    return to_host, to_guest


LOST = ["the device", "the guest", "each"]


def lose(driver: Driver, host: Host, lost: str) -> None:
    """Lose the device as the guest sees it, the guest as the host sees it, or both in turn."""
    assert host.guest is not None
    device_link = cast(DeviceLink, host.guest._link)
    driver_link = cast(RingLink, driver._link)
    if lost != "the guest":
        driver_link.fail("for this test")
    if lost != "the device":
        device_link.fail("for this test")


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.expect_log("device lost", "guest lost")
async def test_a_full_port_with_its_own_ring_gets_what_is_in_it(lost: str) -> None:
    specs = [spec(b"port", puppet := Puppet(), host_limit=LIMIT)]
    async with open_ends(specs, PortOptions(limit=LIMIT), "virtio1") as ends:
        guest, host = ends.ports[0], cast(HostPort, puppet.port)
        to_host, to_guest = fill(ends, puppet)
        assert to_host > LIMIT
        assert to_guest > LIMIT
        lose(ends.driver, ends.host, lost)
        if lost != "the guest":
            assert guest.queued == to_guest
        if lost != "the device":
            assert host.queued == to_host
    assert to_guest == guest.queued + guest.counters.dropped
    assert to_host == host.counters.dropped + guest.counters.dropped


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.expect_log("device lost", "guest lost")
async def test_a_shared_ring_is_emptied_when_the_other_end_is_lost(lost: str) -> None:
    async with late_ends(Pair) as (pair, _, _):
        look(pair)
        for port_id in (0, 1):
            assert pair.write(port_id, 100)
            assert pair.send(port_id, 100)
        lose(pair.driver, pair.host, lost)
        if lost != "the guest":
            assert [port.queued for port in pair.guest] == [100, 100]
        if lost != "the device":
            assert [port.queued for port in pair.puppets] == [100, 100]
    for guest, host in zip(pair.guest, pair.puppets, strict=True):
        assert guest.queued + guest.counters.dropped + host.counters.dropped == 200

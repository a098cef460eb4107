"""Devices that go away and come back, and what their ports see of it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from vconfs.device.embedded import open_embedded
from vconfs.errors import VconfsError
from vconfs.guest.connection import Connection
from vconfs.guest.devices import parse_device
from vconfs.guest.driver import Driver, drive
from vconfs.guest.port import Opener
from vconfs.guest.ports import PortManager
from vconfs.host.host import Host, open_host
from vconfs.host.spec import parse_port
from vconfs.system.tasks import open_background


class Fleeting:
    """A device that has other ports each time it is opened; none: it cannot be had."""

    url = "fleeting:"

    def __init__(self, *times: Sequence[str], dialect: str = "v8") -> None:
        self.times = list(times)
        self.dialect = dialect
        self.driver: Driver | None = None
        self.opened = 0

    @asynccontextmanager
    async def open(self, manager: PortManager) -> AsyncIterator[Driver]:
        self.opened += 1
        ports = self.times.pop(0) if len(self.times) > 1 else self.times[0]
        if not ports:
            raise VconfsError("it sleeps")
        specs = [parse_port(port) for port in ports]
        async with (
            open_host(specs) as host,
            drive(manager, open_embedded(host, self.dialect)) as self.driver,
        ):
            yield self.driver

    def reopen_files(self) -> None: ...

    def lose(self) -> None:
        assert self.driver is not None
        self.driver.lost("it fell asleep")


dialects = pytest.mark.parametrize("dialect", ["v8", "virtio1"])


@dialects
@pytest.mark.expect_log("device lost", "more lines like this", "trying again")
async def test_ports_come_back_with_their_openers(
    dialect: str, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    device = Fleeting(["a=echo", "b=echo", "c=echo"], [], [], ["a=echo", "B=echo"], dialect=dialect)
    manager = PortManager()
    await nursery.start(Connection(device, manager).run)
    a, b, c = (manager.ports[port_id] for port_id in range(3))
    opener = Opener(1)
    a.open(opener)
    assert a.write_nowait(b"before") == 6
    device.lose()
    assert not a.attached
    assert b"".join(a.read_nowait(10)) == b"before"
    assert a.read_nowait(10) == []
    await trio.sleep(5)
    assert manager.ports == {0: a, 1: b}
    assert (a.attached, b.name, c.removed) == (True, b"B", True)
    assert a.write_nowait(b"after") == 5
    assert b"".join(a.read_nowait(10)) == b"after"


class Scarce(Fleeting):
    """A device for which there is no descriptor left, the times that it has no ports."""

    url = "scarce:"

    @asynccontextmanager
    async def open(self, manager: PortManager) -> AsyncIterator[Driver]:
        try:
            async with super().open(manager) as driver:
                yield driver
        except VconfsError:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from None


async def test_a_device_without_descriptors_left_is_tried_again(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device, manager = Scarce(["a=echo"], [], [], ["a=echo"]), PortManager()
    await nursery.start(Connection(device, manager).run)
    device.lose()
    await trio.sleep(5)
    assert manager.ports[0].attached
    reason = "cannot open scarce:: Too many open files"
    assert f"scarce:: {reason}; trying again" in caplog.messages


async def test_a_device_without_descriptors_left_at_first_is_named() -> None:
    connection = Connection(Scarce([]), PortManager())
    with pytest.raises(VconfsError, match="cannot open scarce:: Too many open files"):
        await connection.run()


class Slow:
    """A device that announces its one port when it has been open for a while."""

    url = "slow:"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.driver: Driver | None = None

    @asynccontextmanager
    async def open(self, manager: PortManager) -> AsyncIterator[Driver]:
        async with (
            open_host([]) as host,
            drive(manager, open_embedded(host, "virtio1")) as self.driver,
            open_background() as nursery,
        ):
            nursery.start_soon(self._announce, host)
            yield self.driver

    def reopen_files(self) -> None: ...

    async def _announce(self, host: Host) -> None:
        await trio.sleep(self.seconds)
        await host.add(parse_port("a=echo"))


@pytest.mark.parametrize(("seconds", "same"), [(0.05, True), (1.5, True), (3.0, False)])
@pytest.mark.expect_log("device lost", "trying again")
async def test_a_slow_device_keeps_its_ports(
    seconds: float,
    same: bool,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    device, manager = Slow(seconds), PortManager()
    await nursery.start(Connection(device, manager).run)
    assert bool(manager.ports) == same
    await trio.sleep(5)
    port = manager.ports[0]
    assert device.driver is not None
    device.driver.lost("it fell asleep")
    await trio.sleep(5)
    assert manager.ports[0].attached
    assert (manager.ports[0] is port) == same == (not port.removed)


@pytest.mark.expect_log("device lost", "trying again")
async def test_pauses_grow_and_start_anew(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    device = Fleeting(["a=null"], [])
    await nursery.start(Connection(device, PortManager()).run)
    device.lose()
    await trio.sleep(100)
    assert 50 < device.opened < 60


async def test_the_same_failure_is_logged_once(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Fleeting(["a=null"], [])
    await nursery.start(Connection(device, PortManager()).run)
    with caplog.at_level(logging.WARNING):
        device.lose()
        await trio.sleep(100)
    said = [record.getMessage() for record in caplog.records]
    assert said.count("fleeting:: it sleeps; trying again") == 1


async def test_a_device_that_cannot_be_opened_at_first(nursery: trio.Nursery) -> None:
    with pytest.raises(VconfsError, match="it sleeps"):
        await nursery.start(Connection(Fleeting([]), PortManager()).run)


@pytest.mark.expect_log("device lost")
async def test_once(nursery: trio.Nursery) -> None:
    device = Fleeting(["a=null"])
    connection = Connection(device, PortManager(), once=True)
    await nursery.start(connection.run)
    device.lose()
    with trio.fail_after(20):
        await connection.lost.wait()
    assert (connection.reason, device.opened) == ("it fell asleep", 1)


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("no", {}, "unknown device 'no': it is one of embedded, "),
        ("pci:5", {}, "'5' is not a PCI address"),
        ("pci:00:05.0", {"dialect": "v8"}, "pci: devices speak virtio1, not v8"),
        ("qtest:", {}, "qtest: needs the directory"),
        ("qtest:/tmp", {"bind": True}, "qtest: devices have no driver to be taken from"),
        ("stream:unix:/s", {"dialect": "virtio1"}, "stream: devices speak v8, not virtio1"),
    ],
)
def test_wrong_urls(url: str, options: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_device(url, **options)  # type: ignore[arg-type]

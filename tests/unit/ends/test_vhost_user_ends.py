"""Both ends of vhost-user against each other, in both dialects."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen

from tests.support.waiting import until
from tests.unit.ends.test_ends import read_all, taken
from tests.unit.host.vhost_user.front_end import open_back_end
from vconfs.device.vhost_user import open_vhost_user
from vconfs.errors import VconfsError
from vconfs.guest.connection import Connection
from vconfs.guest.devices import parse_device
from vconfs.guest.driver import Driver, drive
from vconfs.guest.port import Opener
from vconfs.guest.ports import PortManager
from vconfs.host.chardevs import builtin
from vconfs.host.host import Host
from vconfs.host.port import HostPortSpec
from vconfs.host.vhost_user import _session
from vconfs.host.vhost_user.address import VhostUserAddress
from vconfs.protocol.virtqueue import Chain, DeviceQueue
from vconfs.system.tasks import open_background
from vconfs.testing import Puppet

dialects = pytest.mark.parametrize("dialect", ["v8", "virtio1"])


@frozen
class Pair:
    host: Host
    manager: PortManager
    driver: Driver

    def connected(self, port_id: int) -> bool:
        return port_id in self.manager.ports and self.manager.ports[port_id].host_connected


@asynccontextmanager
async def open_pair(
    path: Path, specs: Sequence[HostPortSpec], dialect: str, *, options: str = ""
) -> AsyncIterator[Pair]:
    """Run both ends, where only the host's dialect was chosen."""
    manager = PortManager()
    async with open_back_end(path, specs, dialect=dialect, options=options) as host:
        async with drive(manager, open_vhost_user(str(path), None)) as driver:
            yield Pair(host, manager, driver)


async def be_host(
    path: Path,
    specs: Sequence[HostPortSpec],
    dialect: str,
    task_status: trio.TaskStatus[trio.CancelScope],
) -> None:
    with trio.CancelScope() as scope:
        async with open_back_end(path, specs, dialect=dialect):
            task_status.started(scope)
            await trio.sleep_forever()


def resources() -> tuple[int, int]:
    """How many descriptors are open, and how much of guests' memory is mapped."""
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd:")


async def nothing_stays(held: list[int]) -> None:
    """Wait until no memory is mapped, and no more descriptors are open than the first time.

    Threads close what could take long.
    """
    await until(lambda: not resources()[1])
    if not held:
        held.append(resources()[0])
    await until(lambda: resources()[0] <= held[0])


@dialects
async def test_ports_carry_data_both_ways(tmp_path: Path, dialect: str) -> None:
    first, second = Puppet(), Puppet()
    specs = [HostPortSpec(b"first", first), HostPortSpec(b"second", second, console=True)]
    async with open_pair(tmp_path / "s", specs, dialect) as pair:
        host, manager, driver = pair.host, pair.manager, pair.driver
        await until(lambda: len(manager.ports) == 2 and manager.ports[1].name == b"second")
        assert manager.ports[0].name == b"first"
        await until(lambda: manager.ports[1].console and manager.ports[1].host_connected)
        for port_id, puppet in enumerate((first, second)):
            port = manager.ports[port_id]
            port.write_nowait(b"to the host")
            assert await puppet.port.receive() == b"to the host"
            await puppet.port.send(b"to the guest")
            await until(lambda port=port: port.queued)  # type: ignore[misc]
            assert read_all(port) == b"to the guest"
        assert host.guest is not None
        assert (manager.ignored, driver.reason) == (0, "")


@dialects
@pytest.mark.expect_log("have the same name")
async def test_ports_come_and_go(tmp_path: Path, dialect: str) -> None:
    specs = [HostPortSpec(b"first", Puppet())]
    async with open_pair(tmp_path / "s", specs, dialect) as pair:
        host, manager = pair.host, pair.manager
        for _ in range(3):
            await until(lambda: 0 in manager.ports and manager.ports[0].name == b"first")
            for port_id in (1, 2):
                await host.add(HostPortSpec(b"more", Puppet()))
                await until(
                    lambda port_id=port_id: (  # type: ignore[misc]
                        port_id in manager.ports and manager.ports[port_id].name == b"more"
                    )
                )
            host.remove(1)
            await until(lambda: 1 not in manager.ports)
            host.remove(2)
            await until(lambda: 2 not in manager.ports)
    await until(lambda: not manager.ports[0].attached)


@dialects
async def test_all_data_comes_in_order(tmp_path: Path, dialect: str) -> None:
    puppet = Puppet()
    sent = random.Random(dialect).randbytes(3 << 20)
    async with open_pair(tmp_path / "s", [HostPortSpec(b"p", puppet)], dialect) as pair:
        await until(lambda: pair.connected(0))
        port = pair.manager.ports[0]
        port.open(Opener(1))
        got: dict[str, bytes] = {"guest": b"", "host": b""}

        async def guest_writes() -> None:
            left = memoryview(sent)
            while left:
                left = left[await port.write(left[:300_001]) :]

        async def guest_reads() -> None:
            while len(got["guest"]) < len(sent):
                got["guest"] += taken(await port.read(100_003))

        async def host_reads() -> None:
            while len(got["host"]) < len(sent):
                got["host"] += await puppet.port.receive()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for task in (guest_writes, guest_reads, host_reads):
                    nursery.start_soon(task)
                nursery.start_soon(puppet.port.send, sent)
        assert got["guest"] == sent
        assert got["host"] == sent


class ReportsWhatItRead(DeviceQueue):
    """A device's queue that returns a buffer with as many bytes as it read, and wrote."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._read: dict[int, int] = {}

    def pop(self) -> Chain | None:
        chain = super().pop()
        if chain is not None:
            self._read[chain.head] = chain.readable_length
        return chain

    def push(self, head: int, written: int) -> None:
        entry = 2 * (self._pushed & self._mask)
        super().push(head, written)
        self._used_entries[entry + 1] = written + self._read.pop(head)


@dialects
async def test_a_device_that_reports_what_it_read_is_a_good_one(
    tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rust-vmm's console does so; Linux ignores the length of what it only sends, and so do we."""
    monkeypatch.setattr(_session, "DeviceQueue", ReportsWhatItRead)
    specs = [HostPortSpec(b"echo", builtin.Echo(), console=True)]
    sent = random.Random(dialect).randbytes(1 << 20)
    got = bytearray()
    async with open_pair(tmp_path / "s", specs, dialect) as pair:
        await until(lambda: pair.connected(0) and pair.manager.ports[0].console)
        port = pair.manager.ports[0]
        port.open(Opener(1))

        async def write() -> None:
            left = memoryview(sent)
            while left:
                left = left[await port.write(left[:100_001]) :]

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                while len(got) < len(sent):
                    got += taken(await port.read(100_003))
        assert pair.driver.reason == ""
    assert got == sent


@dialects
@pytest.mark.expect_log("device lost")
async def test_a_host_that_leaves_is_noticed_after_its_last_data(
    tmp_path: Path, dialect: str
) -> None:
    manager, path = PortManager(), tmp_path / "s"
    held: list[int] = []
    for _ in range(3):
        puppet = Puppet()
        specs = [HostPortSpec(b"p", puppet)]
        async with open_background() as nursery:
            host = await nursery.start(be_host, path, specs, dialect)
            async with drive(manager, open_vhost_user(str(path), None)) as driver:
                await until(lambda: manager.ports and manager.ports[0].host_connected)
                await puppet.port.send(b"the last words")
                host.cancel()
                await driver.stopped.wait()
                assert driver.reason == "the back-end has left"
                assert read_all(manager.ports[0]) == b"the last words"
                assert not manager.ports[0].host_connected
        await nothing_stays(held)


@dialects
async def test_the_last_data_of_a_guest_arrives_and_the_next_one_is_served(
    tmp_path: Path, dialect: str
) -> None:
    manager, puppet = PortManager(), Puppet()
    specs = [HostPortSpec(b"p", puppet)]
    held: list[int] = []
    async with open_back_end(tmp_path / "s", specs, dialect=dialect) as host:
        for _ in range(3):
            async with drive(manager, open_vhost_user(str(tmp_path / "s"), None)):
                await until(lambda: manager.ports and manager.ports[0].host_connected)
                manager.ports[0].write_nowait(b"the last words")
            assert await puppet.port.receive() == b"the last words"
            await until(lambda: host.guest is None)
            await nothing_stays(held)


@dialects
@pytest.mark.expect_log("device lost", "trying again")
async def test_the_guest_end_connects_again(
    tmp_path: Path, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = parse_device(f"vhost-user:{tmp_path}/s")
    manager = PortManager()
    async with open_background() as nursery:
        specs = [HostPortSpec(b"one", Puppet()), HostPortSpec(b"two", Puppet())]
        async with open_back_end(tmp_path / "s", specs, dialect=dialect):
            await nursery.start(Connection(device, manager).run)
            one, two = manager.ports.values()
        await until(lambda: not one.attached)
        # For this long it is waited for the port that is missing.
        monkeypatch.setattr("vconfs.guest.connection._ANNOUNCING_MAX", 0.3)
        async with open_back_end(tmp_path / "s", specs[:1], dialect=dialect):
            await until(lambda: one.host_connected and two.removed)
            assert manager.ports == {0: one}


async def test_virtio1_is_spoken_with_as_many_ports_as_there_are_to_be(tmp_path: Path) -> None:
    specs = [HostPortSpec(b"p%d" % port_id, Puppet()) for port_id in range(3)]
    async with open_pair(tmp_path / "s", specs, "virtio1", options=",max-ports=3") as pair:
        await until(lambda: len(pair.manager.ports) == 3)
        assert pair.driver._end.queues == 8
    with pytest.raises(VconfsError, match=r"port id 2 is too large for 2 ports: see max-ports"):
        async with open_back_end(tmp_path / "s", specs, dialect="virtio1", options=",max-ports=2"):
            pass


async def test_sizes_can_be_sent_in_linuxs_order(tmp_path: Path) -> None:
    """Our guest end reads the standard's order, and so it shows what is on the wire."""
    specs = [HostPortSpec(b"con", Puppet(), console=True)]
    for options, expected in ((",resize=rows-first", (25, 80)), ("", (80, 25))):
        async with open_pair(tmp_path / "s", specs, "virtio1", options=options) as pair:
            await until(lambda: 0 in pair.manager.ports)
            pair.host.resize(0, 80, 25)
            await until(lambda: pair.manager.ports[0].size != (0, 0))
            assert pair.manager.ports[0].size == expected


@pytest.mark.parametrize(
    ("rest", "address"),
    [
        ("/run/s", ("/run/s", 31, False)),
        ("/run/s,max-ports=8", ("/run/s", 8, False)),
        ("/run/s,inband,max-ports=127", ("/run/s", 127, True)),
        ("/run/s,resize=cols-first", ("/run/s", 31, False)),
        ("/run/a,,b", ("/run/a,b", 31, False)),
    ],
)
def test_addresses(rest: str, address: tuple[str, int, bool]) -> None:
    parsed = VhostUserAddress.parse(rest)
    assert (parsed.unix.path, parsed.max_ports, parsed.inband) == address


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("", "vhost-user"),
        ("/run/s,resize=sideways", "resize is cols-first or rows-first, not 'sideways'"),
        ("/run/s,max-ports=0", "max-ports is a number from 1 to 127, not '0'"),
        ("/run/s,max-ports=128", "max-ports is a number from 1 to 127, not '128'"),
        ("/run/s,inband,max-ports=8,inband", "inband is given twice"),
        ("/run/s,max-ports=many", "max-ports is a number from 1 to 127, not 'many'"),
        ("/run/s,max-port=8", "unknown option of vhost-user: 'max-port=8': it is max-ports=N or"),
        ("/run/s,inband=1", "inband takes no value, not '1'"),
        ("/" + 107 * "x", "a socket's path has at most 107 bytes"),
    ],
)
def test_wrong_addresses(rest: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        VhostUserAddress.parse(rest)

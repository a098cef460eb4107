"""The guest end against QEMU's own virtio console."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.qemu.changes import Changes, pattern, read_exactly, receive_exactly, write_all
from tests.qemu.doorbell_server import serving_doorbells
from tests.qemu.machine import DOORBELLS, Machine, open_machine, port
from tests.support.waiting import until
from vconfs.device._rings import RingLink
from vconfs.device.qtest.machine import QtestTransport, open_qtest
from vconfs.errors import VconfsError
from vconfs.guest.connection import Connection
from vconfs.guest.devices import parse_device
from vconfs.guest.driver import Driver, drive
from vconfs.guest.port import Opener, Port, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.protocol.virtio1 import CONTROL_OUT

NAME = "org.libvirt.channel.0"
by_both_interrupts = pytest.mark.usefixtures("interrupts")


@pytest.fixture(params=["line", "doorbells"])
async def interrupts(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[None]:
    """Have the device raise its line, or ring doorbells by MSI-X messages."""
    if request.param == "line":
        yield
        return
    async with serving_doorbells(tmp_path / "ivshmem", DOORBELLS):
        yield


@asynccontextmanager
async def driven(
    qemu: Machine, options: str = ""
) -> AsyncIterator[tuple[Changes, Driver, PortManager]]:
    manager = PortManager()
    changes = Changes(manager)
    async with drive(manager, open_qtest(qemu.url_rest + options)) as driver:
        yield changes, driver, manager


@asynccontextmanager
async def one_port(folder: Path) -> AsyncIterator[tuple[Machine, Changes, Port]]:
    async with (
        open_machine(folder, port(folder, 1, NAME)) as qemu,
        driven(qemu) as (changes, _, _),
    ):
        yield qemu, changes, await changes.named(1, NAME)


@by_both_interrupts
async def test_ports_names_and_kinds(tmp_path: Path) -> None:
    arguments = port(tmp_path, 0, "con0", kind="virtconsole")
    arguments += [*port(tmp_path, 1, NAME), *port(tmp_path, 2)]
    async with (
        open_machine(tmp_path, arguments) as qemu,
        driven(qemu) as (changes, driver, manager),
    ):
        console = await changes.named(0, "con0")
        await changes.named(1, NAME)
        await changes.until(lambda: 2 in changes.ports and console.console)
        assert not changes.ports[1].console
        assert changes.ports[2].name == b""
        connected = [changes.ports[port_id].host_connected for port_id in range(3)]
        assert connected == [True, False, False]  # QEMU's consoles are always connected
        assert manager.ignored == 0
        assert driver.reason == ""


async def test_the_address_can_be_given(tmp_path: Path) -> None:
    devices = (
        "virtio-rng-pci,disable-legacy=on,addr=3",
        "virtio-serial-pci,disable-legacy=off,addr=7",
    )
    async with open_machine(tmp_path, port(tmp_path, 1, NAME), devices) as qemu:
        for options in ("", ",addr=7", ",addr=07.0"):
            async with driven(qemu, options) as (changes, _, _):
                await changes.named(1, NAME)
        with pytest.raises(VconfsError, match="1af4:1044 is not a virtio console"):
            async with driven(qemu, ",addr=3.0"):
                raise AssertionError
        with pytest.raises(VconfsError, match="there is no PCI function"):
            async with driven(qemu, ",addr=8"):
                raise AssertionError


@by_both_interrupts
async def test_data_goes_both_ways(tmp_path: Path) -> None:
    async with one_port(tmp_path) as (qemu, changes, port):
        async with await qemu.connect("c1") as host:
            await changes.connected(port)
            port.open(Opener(1))
            assert port.write_nowait(b"to the host") == 11
            assert await receive_exactly(host, 11) == b"to the host"
            await host.send_all(b"to the guest")
            assert await read_exactly(port, 12) == b"to the guest"


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 65537, 1 << 20])
async def test_every_byte_arrives_in_order(tmp_path: Path, size: int) -> None:
    data = pattern(size)[:size]
    async with one_port(tmp_path) as (qemu, changes, port):
        async with await qemu.connect("c1") as host, trio.open_nursery() as nursery:
            await changes.connected(port)
            port.open(Opener(1))
            nursery.start_soon(host.send_all, data)
            assert await read_exactly(port, size) == data
            nursery.start_soon(write_all, port, data)
            assert await receive_exactly(host, size) == data


@by_both_interrupts
async def test_the_host_connects_and_disconnects(tmp_path: Path) -> None:
    async with one_port(tmp_path) as (qemu, changes, port):
        port.open(Opener(1))
        for _ in range(3):
            assert port.poll() & select.POLLHUP
            assert port.read_nowait(10) == []
            async with await qemu.connect("c1"):
                await changes.connected(port)
                assert port.poll() == select.POLLOUT | select.POLLWRNORM
                with pytest.raises(trio.WouldBlock):
                    port.read_nowait(10)
            await changes.connected(port, False)


async def test_what_was_sent_before_a_hang_up_is_read_first(tmp_path: Path) -> None:
    async with one_port(tmp_path) as (qemu, changes, port):
        port.open(Opener(1))
        async with await qemu.connect("c1") as host:
            await changes.connected(port)
            await host.send_all(b"last words")
        await changes.connected(port, False)
        assert await read_exactly(port, 10) == b"last words"
        assert port.read_nowait(10) == []


@by_both_interrupts
async def test_a_host_that_does_not_read(tmp_path: Path) -> None:
    async with one_port(tmp_path) as (qemu, changes, port):
        async with await qemu.connect("c1") as host:
            await changes.connected(port)
            port.open(Opener(1))
            data, sent = pattern(1 << 26), 0
            with suppress(trio.WouldBlock):
                while sent < len(data):
                    sent += port.write_nowait(data[sent : sent + (1 << 18)])
            assert sent > 1 << 19
            assert not port.poll() & select.POLLOUT
            with pytest.raises(trio.WouldBlock):
                port.write_nowait(b"more")
            got = await receive_exactly(host, sent)
            assert got == data[:sent]
            await changes.until(lambda: bool(port.poll() & select.POLLOUT))


@by_both_interrupts
@pytest.mark.expect_log("for unknown port")
async def test_host_data_is_kept_while_no_program_has_the_port_open(tmp_path: Path) -> None:
    async with (
        open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu,
        driven(qemu) as (changes, driver, _),
        await qemu.connect("c1") as host,
    ):
        guest = await changes.named(1, NAME)
        await changes.connected(guest)
        await host.send_all(b"early")
        opener = Opener(1)
        guest.open(opener)
        assert await read_exactly(guest, 5) == b"early"
        guest.close(opener)
        await until_used(driver, CONTROL_OUT)  # what comes while a port is closed, QEMU 7.2 drops
        await host.send_all(b"later")
        assert guest.queued == 0
        guest.open(opener)
        assert await read_exactly(guest, 5) == b"later"


async def until_used(driver: Driver, queue: int) -> None:
    """Wait until the device has used all that was sent on a queue; no interrupt tells."""
    assert isinstance(driver._link, RingLink)
    ring = driver._link._rings[queue]
    await until(lambda: ring._used[1] == ring._published)


@by_both_interrupts
async def test_a_guest_that_does_not_read_holds_the_host_back(tmp_path: Path) -> None:
    data = pattern(1 << 23)
    async with one_port(tmp_path) as (qemu, changes, port):
        async with await qemu.connect("c1") as host, trio.open_nursery() as nursery:
            await changes.connected(port)
            port.open(Opener(1))
            nursery.start_soon(host.send_all, data)
            await changes.until(lambda: port.queued >= port.limit)
            assert port.queued < port.limit + (1 << 16)
            assert await read_exactly(port, len(data)) == data


@by_both_interrupts
async def test_ports_are_plugged_and_unplugged(tmp_path: Path) -> None:
    async with one_port(tmp_path) as (qemu, changes, _):
        for name in ("hot.0", "hot.1", "hot.2"):
            await qemu.plug(2, name)
            hot = await changes.named(2, name)
            async with await qemu.connect(name) as host:
                await changes.connected(hot)
                hot.open(Opener(1))
                await host.send_all(b"hello")
                assert await read_exactly(hot, 5) == b"hello"
                await qemu.unplug(2)
                await changes.until(lambda: 2 not in changes.ports)
                assert hot.removed
                with pytest.raises(OSError) as caught:
                    await hot.read(10)
                assert caught.value.errno == errno.ENODEV


@by_both_interrupts
@pytest.mark.expect_log("device lost")
async def test_qemu_is_killed(tmp_path: Path) -> None:
    async with (
        open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu,
        driven(qemu) as (changes, driver, _),
    ):
        guest = await changes.named(1, NAME)
        async with await qemu.connect("c1"):
            await changes.connected(guest)
            qemu.process.kill()
            with trio.fail_after(20):
                await driver.stopped.wait()
        assert "QEMU is gone" in driver.reason
        assert not guest.host_connected
        assert not guest.attached
        assert guest.read_nowait(10) == []


@by_both_interrupts
async def test_a_device_that_was_driven_can_be_driven_again(tmp_path: Path) -> None:
    async with open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu:
        async with await qemu.connect("c1") as host:
            before = descriptors()
            for _ in range(3):
                async with driven(qemu) as (changes, _, _):
                    guest = await changes.named(1, NAME)
                    await changes.connected(guest)
                    guest.open(Opener(1))
                    guest.write_nowait(b"again")
                    assert await receive_exactly(host, 5) == b"again"
                assert descriptors() == before  # the memory is let go, too


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("virtio-serial-pci,disable-modern=on,disable-legacy=off,addr=4", "legacy interface"),
        ("virtio-rng-pci,addr=4", "no virtio console on bus 0"),
    ],
)
async def test_a_device_that_is_refused(tmp_path: Path, device: str, message: str) -> None:
    async with open_machine(tmp_path, (), (device,)) as qemu:
        with pytest.raises(VconfsError, match=message):
            async with driven(qemu):
                raise AssertionError


async def test_a_folder_without_a_machine(tmp_path: Path) -> None:
    for message in ("cannot map .*/ram: No such file", "has only 0 bytes", "cannot connect to"):
        with pytest.raises(VconfsError, match=message):
            async with drive(PortManager(), open_qtest(str(tmp_path))):
                raise AssertionError
        ram = tmp_path / "ram"
        ram.write_bytes(b"" if not ram.exists() else bytes(2 << 20))


@pytest.mark.parametrize(
    ("vectors", "needed"),
    [(0, set()), (1, {0}), (2, {1}), (3, {1}), (10, {2, 3})],
)
async def test_vectors(
    tmp_path: Path, vectors: int, needed: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data is announced by doorbells. Of ten queues only four are used, one for each doorbell."""
    rung: set[int] = set()
    wait = QtestTransport.wait_interrupt

    async def wait_and_note(self: QtestTransport) -> Collection[int]:
        came = await wait(self)
        rung.update(came)
        return came

    monkeypatch.setattr(QtestTransport, "wait_interrupt", wait_and_note)
    devices = (f"virtio-serial-pci,disable-legacy=on,addr=4,vectors={vectors}",)
    async with (
        serving_doorbells(tmp_path / "ivshmem", DOORBELLS),
        open_machine(tmp_path, port(tmp_path, 1, NAME), devices) as qemu,
        driven(qemu) as (changes, driver, _),
    ):
        guest = await changes.named(1, NAME)
        async with await qemu.connect("c1") as host:
            await changes.connected(guest)
            guest.open(Opener(1))
            await host.send_all(b"ping")
            assert await read_exactly(guest, 4) == b"ping"
            await write_all(guest, b"pong")
            assert await receive_exactly(host, 4) == b"pong"
        assert driver.reason == ""
    assert needed <= rung <= set(range(min(vectors, DOORBELLS)))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(0, "it has not sent 2 doorbells in 0.1 s"), (1, "it has not sent 2 doorbells")],
)
async def test_a_server_with_too_few_doorbells(
    tmp_path: Path, vectors: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vconfs.device.qtest._doorbells._SECONDS", 0.1)
    async with (
        serving_doorbells(tmp_path / "ivshmem", vectors),
        open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu,
    ):
        with pytest.raises(VconfsError, match=message):
            async with driven(qemu):
                raise AssertionError


@pytest.mark.parametrize("most", [2, 31, 511])
async def test_the_last_port_of_many(tmp_path: Path, most: int) -> None:
    devices = (f"virtio-serial-pci,disable-legacy=on,addr=4,max_ports={most}",)
    arguments = port(tmp_path, most - 1, NAME)
    async with (
        open_machine(tmp_path, arguments, devices) as qemu,
        driven(qemu) as (changes, _, _),
    ):
        last = await changes.named(most - 1, NAME)
        async with await qemu.connect(f"c{most - 1}") as host, trio.open_nursery() as nursery:
            await changes.connected(last)
            last.open(Opener(1))
            data = pattern(100_000)
            nursery.start_soon(host.send_all, data)
            assert await read_exactly(last, len(data)) == data
            nursery.start_soon(write_all, last, data)
            assert await receive_exactly(host, len(data)) == data


async def test_a_device_with_one_port_is_a_console(tmp_path: Path) -> None:
    devices = ("virtio-serial-pci,disable-legacy=on,addr=4,max_ports=1",)
    arguments = port(tmp_path, 0, kind="virtconsole")
    async with (
        open_machine(tmp_path, arguments, devices) as qemu,
        driven(qemu) as (changes, _, _),
    ):
        console = changes.ports[0]
        assert console.console
        assert console.host_connected
        async with await qemu.connect("c0") as host:
            console.open(Opener(1))
            await host.send_all(b"login: ")
            assert await read_exactly(console, 7) == b"login: "
            await write_all(console, b"root")
            assert await receive_exactly(host, 4) == b"root"


async def test_early_output_of_a_console_that_is_known(tmp_path: Path) -> None:
    async with open_machine(tmp_path, port(tmp_path, 0, "con", kind="virtconsole")) as qemu:
        manager = PortManager()
        console = manager.add(0)
        console.become_console()
        async with await qemu.connect("c0") as host, drive(manager, open_qtest(qemu.url_rest)):
            assert not console.attached  # nothing was awaited since the driver has started
            assert console.write_nowait(b"early, ") == 7
            await Changes(manager).connected(console)
            assert console.write_nowait(b"late") == 4
            assert await receive_exactly(host, 11) == b"early, late"


@by_both_interrupts
async def test_plugging_200_times_while_another_port_transfers(tmp_path: Path) -> None:
    async with one_port(tmp_path) as (qemu, changes, busy):
        async with await qemu.connect("c1") as host, trio.open_nursery() as nursery:
            await changes.connected(busy)
            busy.open(Opener(1))
            nursery.start_soon(send_for_ever, host)
            nursery.start_soon(check_for_ever, busy)
            for _ in range(200):
                await qemu.command("device_add", driver="virtserialport", name="hot", id="p2", nr=2)
                await changes.named(2, "hot")
                await qemu.unplug(2)
                await changes.until(lambda: 2 not in changes.ports)
            nursery.cancel_scope.cancel()
        assert busy.counters.bytes_in > 1 << 20


PIECE = pattern(251)[:251]


async def send_for_ever(host: trio.SocketStream) -> None:
    while True:
        await host.send_all(PIECE * 100)


async def check_for_ever(port: Port) -> None:
    while True:
        assert await read_exactly(port, len(PIECE)) == PIECE


@by_both_interrupts
async def test_reset_while_busy(tmp_path: Path) -> None:
    async with open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu:
        async with await qemu.connect("c1") as host, trio.open_nursery() as nursery:
            nursery.start_soon(drain_for_ever, host)
            for _ in range(5):
                async with driven(qemu) as (changes, _, _):
                    guest = await changes.named(1, NAME)
                    await changes.connected(guest)
                    guest.open(Opener(1))
                    while guest.counters.bytes_out < 1 << 20:
                        await guest.write(pattern(1 << 16))
                assert not guest.attached
            nursery.cancel_scope.cancel()


@by_both_interrupts
@pytest.mark.expect_log("device lost", "trying again")
async def test_the_machine_is_reset_while_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ports hang up and come back: no interrupt came, and all registers are as at power-on."""
    monkeypatch.setattr("vconfs.device.pci._LOOK_SECONDS", 0.1)
    manager = PortManager()
    changes = Changes(manager)
    async with (
        open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu,
        await qemu.connect("c1") as host,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(Connection(parse_device(f"qtest:{tmp_path}"), manager).run)
        guest = manager.ports[1]
        guest.open(Opener(1))
        nursery.start_soon(send_for_ever, host)
        for _ in range(3):
            await changes.connected(guest)
            await read_exactly(guest, guest.queued + (1 << 18))
            await qemu.command("system_reset")
            await changes.connected(guest, False)
            while await guest.read(1 << 20):
                pass
        await changes.connected(guest)
        await write_all(guest, b"still here")
        assert await receive_exactly(host, 10) == b"still here"
        nursery.cancel_scope.cancel()


async def drain_for_ever(host: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while await host.receive_some():
            pass


@by_both_interrupts
@pytest.mark.expect_log("device lost")
async def test_a_device_that_needs_a_reset(tmp_path: Path) -> None:
    async with (
        open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu,
        driven(qemu) as (changes, driver, _),
    ):
        guest = await changes.named(1, NAME)
        link = driver._link
        assert isinstance(link, RingLink)
        ring = link._send[3].ring
        ring._avail[2 + (ring._added & ring._mask)] = 1000  # no such descriptor
        ring._added += 1
        link.flush(3)
        with trio.fail_after(20):
            await driver.stopped.wait()
        assert driver.reason == "the device met an error and needs a reset"
        assert not guest.attached


@pytest.mark.expect_log("device lost")
async def test_two_machines_at_once(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    async with (
        one_port(first) as (one, lost, port_one),
        one_port(second) as (two, changes, port_two),
    ):
        one.process.kill()
        async with await two.connect("c1") as host:
            await changes.connected(port_two)
            port_two.open(Opener(1))
            await host.send_all(b"alive")
            assert await read_exactly(port_two, 5) == b"alive"
        await lost.until(lambda: not port_one.attached)


@pytest.mark.parametrize("moment", [0, 1, 1 << 12, 1 << 20, 1 << 22])
@pytest.mark.expect_log("device lost")
async def test_qemu_is_killed_while_data_flows(tmp_path: Path, moment: int) -> None:
    async with (
        open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu,
        driven(qemu) as (changes, driver, _),
    ):
        guest = await changes.named(1, NAME)
        host = await qemu.connect("c1")
        await changes.connected(guest)
        guest.set_options(PortOptions(throttle="enospc"))
        guest.open(Opener(1))
        with trio.fail_after(10):
            async with host, trio.open_nursery() as nursery:
                nursery.start_soon(send_until_lost, host)
                nursery.start_soon(drain_for_ever, host)
                nursery.start_soon(write_until_lost, guest)
                nursery.start_soon(kill_at, qemu, changes, moment)
                while await guest.read(1 << 16):
                    pass
        await driver.stopped.wait()
        assert "QEMU is gone" in driver.reason


async def send_until_lost(host: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        await send_for_ever(host)


async def write_until_lost(port: Port) -> None:
    while True:
        try:
            await port.write(PIECE * 100)
        except OSError as error:
            assert error.errno == errno.ENOTCONN
            return


async def kill_at(qemu: Machine, changes: Changes, moment: int) -> None:
    await changes.until(lambda: changes.ports[1].counters.bytes_in >= moment)
    qemu.process.kill()


async def test_qemu_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vconfs.device.qtest._qtest_client._ANSWER_SECONDS", 0.1)
    async with open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu:
        qemu.process.send_signal(signal.SIGSTOP)
        with pytest.raises(VconfsError, match=r"QEMU has not answered in 0\.1 s"):
            async with driven(qemu):
                raise AssertionError

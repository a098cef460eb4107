"""The host end as a vhost-user back-end: real sockets, descriptors and memory."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from tests.support.waiting import until
from tests.unit.host.vhost_user.front_end import (
    GUEST,
    PROTOCOL,
    RING_SIZE,
    SIZE,
    USER,
    FrontEnd,
    is_sealed,
    open_back_end,
    open_front_end,
)
from vconfs.host.host import Host
from vconfs.host.port import HostPort, HostPortSpec
from vconfs.host.vhost_user import _missing_queues
from vconfs.host.vhost_user import _session as vhost_user_session
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.events import Buffer
from vconfs.protocol.vhost_user import Region
from vconfs.testing import Puppet


def data(port_id: int, body: bytes) -> bytes:
    return struct.pack("<III", port_id, 0, len(body)) + body


def control(port_id: int, event: int, value: int, rest: bytes = b"") -> bytes:
    return struct.pack("<IIIHH", port_id, 1, 4 + len(rest), event, value) + rest


OPEN, NAME = 0, 1
ONE = (1).to_bytes(8, "little")


async def name_of(front: FrontEnd, port_id: int) -> bytes:
    """Take a port up as a v8 guest does, and give its name."""
    front.put(1, control(port_id, NAME, 0))
    about, event = -1, -1
    while (about, event) != (port_id, NAME):
        reply = await front.used(0)
        about, _, _, event, _ = struct.unpack_from("<IIIHH", reply)
    return reply[16:]


@pytest.mark.parametrize(
    ("options", "named", "started", "warning"),
    [
        (
            "",
            4,
            False,
            "a driver left without its queues: the front-end has 4 (num_vqs in QEMU), and the "
            "driver needs 64: set it to 64, or listen with max-ports=1",
        ),
        (
            ",max-ports=2",
            2,
            False,
            "a driver left without its queues: the front-end has 2 (num_vqs in QEMU), and the "
            "driver needs 6: set it to 6",
        ),
        ("", 4, True, ""),  # a driver without MULTIPORT, which needs two
        ("", 64, False, ""),
        ("", 0, False, ""),  # user-mode Linux names them later
    ],
)
async def test_a_driver_that_leaves_without_its_queues_is_told_of(
    tmp_path: Path,
    options: str,
    named: int,
    started: bool,
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_missing_queues, "PATIENCE", 0)
    path, specs = tmp_path / "s", [HostPortSpec(b"port", Puppet())]
    async with (
        open_back_end(path, specs, dialect="virtio1", options=options) as host,
        open_front_end(path, 64) as front,
    ):
        await front.negotiate(features=1 << 32)
        for index in range(named):
            await front.ask(front.codec.set_vring_call(index, front.calls[index]))
        if started:
            await front.share()
            await front.start_ring(0)
            await front.start_ring(1)
        for _ in range(2):  # it is not said again
            await front.ask(front.codec.get_config(0, 12))
            await trio.testing.wait_all_tasks_blocked()
        assert (host.guest is not None) == started
        assert caplog.messages == ([warning] if warning else [])


async def test_a_guest_is_served(tmp_path: Path) -> None:
    puppet = Puppet()
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", puppet)]),
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        assert is_sealed(front.memfd)
        config = await front.ask(front.codec.get_config(0, 8))
        assert config is not None
        assert config.data == struct.pack("<HHI", 0, 0, 1)
        assert await name_of(front, 0) == b"port"
        assert await front.used(0) == control(0, OPEN, 1)
        front.put(1, control(0, OPEN, 1))
        front.put(1, data(0, b"to the host"), slot=1)
        assert await puppet.port.receive() == b"to the host"
        await puppet.port.send(b"to the guest")
        assert await front.used(0) == data(0, b"to the guest")


async def test_a_port_is_added(tmp_path: Path) -> None:
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", Puppet())]) as host,
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        await host.add(HostPortSpec(b"more", Puppet()))
        assert front.channel is not None
        message = await front.channel.receive()
        assert message is not None
        assert (message.request, message.flags, message.payload) == (2, 1, b"")
        config = await front.ask(front.codec.get_config(0, 8))
        assert config is not None
        assert config.data == struct.pack("<HHI", 0, 0, 2)
        assert await name_of(front, 1) == b"more"


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:guest")


@pytest.mark.expect_log("turned away")
async def test_the_next_front_end_is_served_and_nothing_stays_of_the_last_one(
    tmp_path: Path,
) -> None:
    async with open_back_end(tmp_path / "s", [HostPortSpec(b"port", Puppet())]) as host:
        seen = set()
        for round in range(4):
            async with open_front_end(tmp_path / "s") as front:
                await front.start()
                assert await name_of(front, 0) == b"port"
                assert host.guest is not None
                assert mappings() == 2
                if round == 2:  # an abrupt end, inside of a message
                    await front.sock.send(b"\1\0")
            await no_guest(host)
            seen.add((open_fds(), mappings()))
        assert len(seen) == 1
        assert seen.pop()[1] == 0


async def test_a_paused_guest_goes_on_where_it_was(tmp_path: Path) -> None:
    puppet = Puppet()
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", puppet)]) as host,
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        assert await name_of(front, 0) == b"port"
        assert await front.used(0) == control(0, OPEN, 1)
        guest = host.guest
        bases = []
        for index in (0, 1):
            await front.ask(front.codec.set_vring_enable(index, False))
            reply = await front.ask(front.codec.get_vring_base(index))
            assert reply is not None
            bases.append(reply.value)
        assert bases == [2, 1]
        front.put(1, data(0, b"while it is paused"))
        await trio.testing.wait_all_tasks_blocked()
        assert puppet.port.counters.bytes_in == 0  # type: ignore[attr-defined]
        await front.share()
        for index, base in enumerate(bases):
            await front.start_ring(index, base)
        assert await puppet.port.receive() == b"while it is paused"
        await puppet.port.send(b"and on")
        assert await front.used(0) == data(0, b"and on")
        assert host.guest is guest


@pytest.mark.parametrize("ask_where", [True, False])
async def test_another_driver_begins_anew(tmp_path: Path, ask_where: bool) -> None:
    """Linux's user-mode driver only disables its rings, and sets them up again."""
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", Puppet())]) as host,
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        assert await name_of(front, 0) == b"port"
        assert await front.used(0) == control(0, OPEN, 1)
        first = host.guest
        for index in (1, 0):
            await front.ask(front.codec.set_vring_enable(index, False))
            if ask_where:
                await front.ask(front.codec.get_vring_base(index))
        await front.start()
        assert host.guest is not first
        assert await name_of(front, 0) == b"port"
        assert await front.used(0) == control(0, OPEN, 1)


# Notifications


def notifier(kind: str, *, they_write: bool) -> tuple[int, int]:
    """Our end and the back-end's of something to notify by, which holds a page at most."""
    if kind == "socket":
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, mmap.PAGESIZE)
        return ours.detach(), theirs.detach()
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, mmap.PAGESIZE)
    return (reader, writer) if they_write else (writer, reader)


@pytest.mark.parametrize("kind", ["socket", "pipe"])
async def test_kicks_and_calls_by_what_is_no_eventfd(tmp_path: Path, kind: str) -> None:
    """User-mode Linux is called by stream sockets."""
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", Puppet())]),
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        kicks, their_kicks = notifier(kind, they_write=False)
        calls, their_calls = notifier(kind, they_write=True)
        await front.ask(front.codec.set_vring_kick(1, their_kicks))
        await front.ask(front.codec.set_vring_call(0, their_calls))
        os.close(their_kicks)
        os.close(their_calls)
        for _ in range(mmap.PAGESIZE // len(ONE) + 100):  # more than is held without a reader
            front.put_quietly(1, control(0, NAME, 0))
            os.write(kicks, ONE)
            while not front.rings[0].has_used() or not front.rings[1].has_used():
                await trio.lowlevel.checkpoint()
            assert (await front.used(0))[:4] == bytes(4)
            front.rings[1].pop_used()
            front.offer(0, 0)
            front.publish(0)
        assert os.read(calls, 8) == ONE
        os.close(calls)  # who closes them wants none
        os.close(kicks)
        await front.ask(front.codec.set_vring_kick(1, front.kicks[1]))
        front.put(1, control(0, NAME, 0))
        await until(front.rings[0].has_used)


async def test_a_ring_without_a_descriptor_is_polled(tmp_path: Path) -> None:
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", Puppet())]),
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        for index in (0, 1):
            await front.ask(front.codec.set_vring_kick(index, None))
            await front.ask(front.codec.set_vring_call(index, None))
        front.put_quietly(1, control(0, NAME, 0))
        await until(front.rings[0].has_used)
        assert await front.used(0) == control(0, NAME, 1, b"port")


async def test_notifications_by_message(tmp_path: Path) -> None:
    """Simulations want them, for their strict order (user-mode Linux's time travel)."""
    puppet = Puppet()
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", puppet)], options=",inband"),
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start(protocol=PROTOCOL | vu.PF_INBAND_NOTIFICATIONS)
        for index in (0, 1):
            await front.ask(front.codec.set_vring_kick(index, None))
            await front.ask(front.codec.set_vring_call(index, None))
        front.put_quietly(1, control(0, NAME, 0))
        assert not front.rings[0].has_used()
        await front.ask(front.codec.vring_kick(1))
        assert await front.used(0) == control(0, NAME, 1, b"port")
        assert front.channel is not None
        message = await front.channel.receive()
        assert message is not None
        assert front.codec.receive_request(message) == vu.Asked(vu.VringCalled(0))


async def test_a_front_end_that_reads_no_requests_keeps_nothing_waiting(tmp_path: Path) -> None:
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", Puppet())]) as host,
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        for _ in range(1000):
            await host.add(HostPortSpec(b"more", Puppet()))
            host.remove(1)
        await host.add(HostPortSpec(b"last", Puppet()))
        assert await name_of(front, 1) == b"last"
        assert front.channel is not None
        for _ in range(200):  # and there is room again
            await front.channel.receive()
        await host.add(HostPortSpec(b"very last", Puppet()))
        assert await name_of(front, 2) == b"very last"


# The guest and its memory


@pytest.mark.expect_log("guest lost")
async def test_a_ring_that_was_broken_is_left_alone_until_another_driver_comes(
    tmp_path: Path,
) -> None:
    """Linux takes buffers back before user-mode Linux stops the rings."""
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", Puppet())]) as host,
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        assert await name_of(front, 0) == b"port"
        await front.ask(front.codec.set_vring_err(1, front.calls[1]))
        front.rings[1]._avail[1] = 1000
        os.eventfd_write(front.kicks[1], 1)
        await front.called(1)
        await no_guest(host)
        os.eventfd_write(front.kicks[1], 1)
        for index in (1, 0):
            await front.ask(front.codec.set_vring_enable(index, False))
        await front.start()
        assert await name_of(front, 0) == b"port"


async def no_guest(host: Host) -> None:
    while host.guest is not None:
        await trio.testing.wait_all_tasks_blocked()


async def test_a_guest_that_never_pauses_does_not_starve_the_others(tmp_path: Path) -> None:
    puppet = Puppet()
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", puppet)]) as host,
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        assert await name_of(front, 0) == b"port"
        ring, buffer = front.rings[1], data(0, b"more")
        at = SIZE // 2
        front.memory[at : at + len(buffer)] = buffer
        for head in range(RING_SIZE):
            struct.pack_into("<QIHH", ring._desc, 16 * head, GUEST + at, len(buffer), 0, 0)

        def give_one_more(_: Buffer = b"") -> int:
            """Be a guest that does not even wait to get its buffers back."""
            last = ring._avail[1]
            ring._avail[2 + last % RING_SIZE] = last % RING_SIZE
            ring._avail[1] = (last + 1) % (1 << 16)
            return 4

        puppet.port.sink = give_one_more
        give_one_more()
        os.eventfd_write(front.kicks[1], 1)
        port = cast(HostPort, puppet.port)
        await until(lambda: port.counters.bytes_in >= 20_000)
        before = port.counters.bytes_in
        host.detach()  # takes what is in the ring by now, and not what comes meanwhile
        assert 0 < port.counters.bytes_in - before <= len(b"more") * RING_SIZE


@pytest.mark.parametrize("address", [0, GUEST - 1, GUEST + SIZE - 1, GUEST + SIZE, 2**64 - 12])
async def test_a_buffer_outside_of_the_memory_is_not_followed(
    tmp_path: Path, address: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", Puppet())]) as host,
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        head = front.rings[1].add(SIZE // 2, 12, writable=False)
        struct.pack_into("<Q", front.rings[1]._desc, 16 * head, address)
        front.publish(1)
        await no_guest(host)
        assert f"12 bytes at {address:#x} are outside of the memory" in caplog.text


async def test_memory_may_change_while_rings_run(tmp_path: Path) -> None:
    puppet = Puppet()
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", puppet)]) as host,
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start()
        assert await name_of(front, 0) == b"port"
        guest = host.guest
        more = Region(GUEST + SIZE, 4096, USER + SIZE)
        await front.ask(front.codec.add_mem_reg(more, front.memfd))
        assert mappings() == 3
        await front.ask(front.codec.rem_mem_reg(more))
        assert mappings() == 2
        await front.share()
        assert mappings() == 2
        assert await front.used(0) == control(0, OPEN, 1)
        await puppet.port.send(b"still there")
        assert await front.used(0) == data(0, b"still there")
        assert host.guest is guest


async def test_no_byte_is_lost_when_a_front_end_leaves(tmp_path: Path) -> None:
    puppet = Puppet()
    async with open_back_end(tmp_path / "s", [HostPortSpec(b"port", puppet)]):
        async with open_front_end(tmp_path / "s") as front:
            await front.start()
            assert await name_of(front, 0) == b"port"
            front.put_quietly(1, data(0, b"nobody was told"))
        assert await puppet.port.receive() == b"nobody was told"


@pytest.mark.expect_log("turned away")
async def test_the_time_for_a_hello_is_for_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_user_session, "_HELLO", 0.05)
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", Puppet())]),
        open_front_end(tmp_path / "s") as slow,
    ):

        async def go_on() -> None:
            while True:
                await slow.ask(slow.codec.set_owner())
                await trio.sleep(0.001)

        with pytest.raises(OSError, match="Broken pipe"):
            await go_on()


# The standard's dialect


async def test_an_emergency_write_comes_to_port_0(tmp_path: Path) -> None:
    puppet = Puppet()
    specs = [HostPortSpec(b"port", puppet)]
    async with (
        open_back_end(tmp_path / "s", specs, dialect="virtio1"),
        open_front_end(tmp_path / "s", 64) as front,
    ):
        await front.negotiate(features=1 << 32 | 7)
        reply = await front.ask(front.codec.get_config(0, 12))
        assert reply is not None
        assert reply.data == struct.pack("<HHII", 0, 0, 31, 0)
        await front.ask(front.codec.set_config(8, b"!\0\0\0"))
        assert await puppet.port.receive() == b"!"
        queues = await front.ask(front.codec.get_queue_num())
        assert queues is not None
        assert queues.value == 64


async def test_a_guest_without_multiport_has_a_console(tmp_path: Path) -> None:
    puppet = Puppet()
    async with (
        open_back_end(tmp_path / "s", [HostPortSpec(b"port", puppet, console=True)]),
        open_front_end(tmp_path / "s") as front,
    ):
        await front.start(features=1 << 32)
        front.put(1, b"bare bytes")
        assert await puppet.port.receive() == b"bare bytes"
        await puppet.port.send(b"and back")
        assert await front.used(0) == b"and back"

"""The host end as a vhost-user back-end: real sockets, descriptors and memory."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from vconfs.host.port import HostPortSpec
from vconfs.testing import Puppet

from .front_end import FrontEnd, is_sealed, open_back_end, open_front_end


def data(id: int, body: bytes) -> bytes:
    return struct.pack("<III", id, 0, len(body)) + body


def control(id: int, event: int, value: int) -> bytes:
    return struct.pack("<IIIHH", id, 1, 4, event, value)


OPEN, NAME = 0, 1


async def name_of(front: FrontEnd, id: int) -> bytes:
    """Take a port up as a v8 guest does, and give its name."""
    front.put(1, control(id, NAME, 0))
    reply = await front.used(0)
    assert reply[:12] == struct.pack("<III", id, 1, len(reply) - 12)
    return reply[16:]


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
            while host.guest is not None:
                await trio.testing.wait_all_tasks_blocked()
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

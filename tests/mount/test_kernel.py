"""The `kernel` device: ports of another driver, here those of a mount of ours in /dev's place.

It behaves as the kernel's files do, but that a second open of those would be EBUSY; tests/guest has
the real ones.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import frozen

from tests.qemu.changes import Changes, pattern, read_exactly, receive_exactly, write_all
from tests.support.waiting import until
from vconfs.errors import VconfsError
from vconfs.guest._kernel import KernelPorts, id_of_device, open_kernel
from vconfs.guest.port import Opener, Port
from vconfs.guest.ports import PortManager
from vconfs.link.taps import Tapper
from vconfs.protocol import tap

from .test_commands import folder, vconfs

__all__ = ["folder"]

NAME = "org.example.kernel"
SIZE = 3 << 20


@frozen
class Kernel:
    """Folders that look like /sys and /dev, and what we make of them."""

    root: Path
    joined: KernelPorts
    changes: Changes

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(f"{self.root}/host")

    async def opened(self) -> Port:
        port = self.changes.ports[1]
        port.open(Opener(1))
        await self.changes.connected(port)
        return port


def add(root: Path, name: str, port_name: str = "") -> None:
    sysfs = root / "sys/class/virtio-ports" / name
    sysfs.mkdir(parents=True)
    if port_name:
        (sysfs / "name").write_text(port_name + "\n")


@asynccontextmanager
async def kernel(mountpoint: Path) -> AsyncIterator[Kernel]:
    root = mountpoint.parent
    port = f"{NAME}=unix:{root}/host,host-limit=65536"
    vconfs("mount", "--dialect", "virtio1", "--port", port, str(mountpoint))
    (root / "dev").mkdir()
    (root / "dev/vport0p1").symlink_to(mountpoint / "vcon0")
    add(root, "vport0p1", NAME)
    manager = PortManager()
    changes = Changes(manager)
    with trio.fail_after(20):
        async with open_kernel(manager, root / "sys", root / "dev") as joined:
            yield Kernel(root, joined, changes)


async def test_bytes_both_ways_and_hang_ups(folder: Path) -> None:
    async with kernel(folder) as it:
        assert it.changes.ports[1].name == NAME.encode()
        async with await it.connect() as host:
            port = await it.opened()
            await host.send_all(b"from the host")
            assert await read_exactly(port, 13) == b"from the host"
            await write_all(port, b"to the host")
            assert await receive_exactly(host, 11) == b"to the host"
            await host.send_all(b"last words")
        await it.changes.connected(port, False)
        assert await read_exactly(port, 10) == b"last words"
        assert port.read_nowait(1) == []
        async with await it.connect() as host:
            await it.changes.connected(port)
            await host.send_all(b"again")
            assert await read_exactly(port, 5) == b"again"


async def test_a_tap_shows_both_ways(folder: Path) -> None:
    async with kernel(folder) as it, await it.connect() as host:
        port = await it.opened()
        tapper = Tapper(lambda: None)
        it.joined._manager.taps.begin(tapper)
        await write_all(port, b"question")
        await host.send_all(b"answer")
        await read_exactly(port, 6)
        lines = b"".join(tapper.backlog.take(1 << 16)).splitlines()
        records = [tap.parse(line) for line in lines]
        assert [(record.event, record.data) for record in records] == [
            ("present", b""),
            ("out", b"question"),
            ("in", b"answer"),
        ]


async def test_an_open_is_announced_at_once_and_drops_nothing_if_it_was_not_used(
    folder: Path,
) -> None:
    async with kernel(folder) as it, await it.connect() as host:
        port, opener = it.changes.ports[1], Opener(1)
        port.open(opener, quiet=True)
        await it.changes.connected(port)
        await host.send_all(b"a question")
        await it.changes.until(lambda: port.queued == 10)
        port.close(opener)
        assert (port.queued, port.counters.dropped) == (10, 0)
        await it.opened()
        assert await read_exactly(port, 10) == b"a question"


async def test_much_data_waits_for_the_slow_end(folder: Path) -> None:
    data = pattern(SIZE)[:SIZE]
    async with kernel(folder) as it, await it.connect() as host, trio.open_nursery() as nursery:
        port = await it.opened()
        nursery.start_soon(host.send_all, data)
        await it.changes.until(lambda: port.queued >= port.limit)
        assert await read_exactly(port, SIZE) == data
        while True:
            try:
                port.write_nowait(data)
            except trio.WouldBlock:
                break
        opener = next(iter(port.openers))
        assert not port.answer_poll(opener) & 4  # POLLOUT
        taken = port.counters.bytes_out
        nursery.start_soon(receive_exactly, host, taken + SIZE)
        await it.changes.until(lambda: bool(port.poll() & 4))
        nursery.start_soon(write_all, port, data)
    assert port.counters.bytes_out == taken + SIZE


async def test_ports_come_go_and_get_names(folder: Path) -> None:
    async with kernel(folder) as it:
        port = it.changes.ports[1]
        port.open(Opener(1))
        add(it.root, "vport1p2")
        it.joined.look()
        assert sorted(it.changes.ports) == [1, 1026]
        (it.root / "sys/class/virtio-ports/vport1p2/name").write_text("late\n")
        it.joined.look()
        assert it.changes.ports[1026].name == b"late"
        (it.root / "sys/class/virtio-ports/vport0p1/name").unlink()
        (it.root / "sys/class/virtio-ports/vport0p1").rmdir()
        it.joined.look()
        assert sorted(it.changes.ports) == [1026]
        with pytest.raises(OSError, match="No such device") as raised:
            port.read_nowait(1)
        assert raised.value.errno == errno.ENODEV


async def test_a_port_that_cannot_be_opened(folder: Path) -> None:
    async with kernel(folder) as it:
        add(it.root, "vport0p2")
        it.joined.look()
        with pytest.raises(FileNotFoundError):
            it.changes.ports[2].open(Opener(1))
        assert not it.changes.ports[2].openers


async def test_a_port_that_cannot_be_waited_for_is_not_left_open(folder: Path) -> None:
    async with kernel(folder) as it:
        (it.root / "dev/vport0p2").touch()
        add(it.root, "vport0p2")
        it.joined.look()
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(PermissionError):
            it.changes.ports[2].open(Opener(1))
        await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_a_unit_without_netlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    (tmp_path / "sys/class/virtio-ports").mkdir(parents=True)
    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(VconfsError, match="RestrictAddressFamilies=AF_NETLINK"):
        async with open_kernel(PortManager(), tmp_path / "sys", tmp_path):
            pass


async def test_a_kernel_without_the_driver(tmp_path: Path) -> None:
    with pytest.raises(VconfsError, match="is the module virtio_console loaded"):
        async with open_kernel(PortManager(), tmp_path, tmp_path):
            pass


@pytest.mark.parametrize(
    ("name", "port_id"),
    [("vport0p0", 0), ("vport0p7", 7), ("vport2p7", 2055), ("vport0p1024", None), ("ttyS0", None)],
)
def test_ids(name: str, port_id: int | None) -> None:
    assert id_of_device(name) == port_id

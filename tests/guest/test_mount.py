"""`vconfs mount` inside of a booted guest: on a real device with MSI-X, on one without, and on the
kernel's own ports. Host programs are at the other ends of the ports' sockets.

The tests of one device share a mount, which the last one takes away.
"""

from __future__ import annotations

import hashlib
import json
import select
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from tests.guest.conftest import Mount, QemuHost
from tests.guest.guest import KERNELS, MOUNTPOINT, VCONFS
from tests.guest.transfers import UNIT, check_both_ways
from tests.qemu.changes import pattern, receive_exactly
from tests.support.compare.differences import check
from tests.support.compare.scenario import Recording, record
from tests.support.remote.client import Remote
from tests.support.remote.shell import check_cat_and_echo

pytestmark = pytest.mark.limit(120)

SIZE = 8 << 20  # more than all buffers on the way hold


@pytest.fixture
async def host(mount: Mount) -> AsyncIterator[trio.SocketStream]:
    """Connect as the host of the device's first port."""
    async with await mount.guest.connect(mount.device.data) as stream:
        yield stream


async def opened(remote: Remote, path: str) -> int:
    """Open a port, and wait until it knows of its host."""
    file = await remote.open(path)
    await remote.connected(file)
    return file


async def test_names(mount: Mount, remote: Remote) -> None:
    names = await remote.listdir(f"{MOUNTPOINT}/by-name")
    assert {mount.device.data, mount.device.agent} <= set(names)
    target = await remote.readlink(mount.file(mount.device.data))
    assert target in [f"../{name}" for name in await remote.listdir(MOUNTPOINT)]
    for attribute in ("name", "user.name"):
        value = await remote.getxattr(mount.file(mount.device.data), attribute)
        assert value == mount.device.data.encode()


async def test_cat_and_echo(mount: Mount, remote: Remote, host: trio.SocketStream) -> None:
    path = mount.file(mount.device.data)
    await remote.close(await opened(remote, path))
    await check_cat_and_echo(remote, path, host)


async def test_much_data(mount: Mount, remote: Remote, host: trio.SocketStream) -> None:
    file = await opened(remote, mount.file(mount.device.data))
    await check_both_ways(remote, file, host, SIZE)
    await remote.close(file)


async def test_poll(mount: Mount, remote: Remote, host: trio.SocketStream) -> None:
    file = await opened(remote, mount.file(mount.device.data))
    assert await remote.poll(file) == select.POLLOUT
    await host.send_all(b"x")
    assert await remote.poll_until(file, select.POLLIN) == select.POLLIN | select.POLLOUT
    assert await remote.read(file, 100) == b"x"
    assert await remote.poll(file) == select.POLLOUT
    await host.aclose()
    assert await remote.poll_until(file, select.POLLHUP) == select.POLLIN | select.POLLHUP
    assert await remote.read(file, 100) == b""
    await remote.close(file)


async def test_a_host_that_does_not_read(
    mount: Mount, remote: Remote, host: trio.SocketStream
) -> None:
    file = await opened(remote, mount.file(mount.device.data))
    taken = b""
    while len(taken) < SIZE:  # QEMU may have taken some meanwhile
        size = await remote.write_repeated(file, UNIT, SIZE)
        taken += pattern(size)[:size]
        if not size and not await remote.poll(file) & select.POLLOUT:
            break
    assert 0 < len(taken) < SIZE
    assert await receive_exactly(host, len(taken)) == taken
    assert await remote.poll_until(file, select.POLLOUT) == select.POLLOUT
    await remote.close(file)


async def test_a_guest_that_does_not_read(
    mount: Mount, remote: Remote, host: trio.SocketStream
) -> None:
    """The host is held back, nothing is lost, and the other port goes on meanwhile."""
    data = pattern(SIZE)[:SIZE]
    file = await opened(remote, mount.file(mount.device.data))
    await remote.set_blocking(file, True)
    async with await mount.guest.connect(mount.device.agent) as other_host:
        other = await opened(remote, mount.file(mount.device.agent))
        async with trio.open_nursery() as nursery:
            sent = trio.Event()

            async def send() -> None:
                await host.send_all(data)
                sent.set()

            nursery.start_soon(send)
            await remote.poll_until(file, select.POLLIN)
            for _ in range(3):
                await other_host.send_all(b"question")
                await remote.poll_until(other, select.POLLIN)
                assert await remote.read(other, 100) == b"question"
                assert await remote.write(other, b"answer") == 6
                assert await receive_exactly(other_host, 6) == b"answer"
            assert not sent.is_set()
            assert await remote.read_digest(file, SIZE) == hashlib.sha256(data).hexdigest()
        await remote.close(other)
    await remote.close(file)


async def test_hot_plug(mount: Mount, remote: Remote) -> None:
    name = f"org.example.late.{mount.device.slot}"
    async with mount.guest.open_monitor() as monitor:
        await monitor.plug(7, name, bus=mount.device.bus)
        await remote.exists_until(mount.file(name))
        file = await remote.open(mount.file(name))
        async with await mount.guest.connect(name) as host:
            await remote.connected(file)
            await host.send_all(b"hello")
            await remote.poll_until(file, select.POLLIN)
            assert await remote.read(file, 100) == b"hello"
            await monitor.unplug(7)
            await remote.exists_until(mount.file(name), False)
            with pytest.raises(OSError, match="No such device"):
                await remote.read(file, 100)
            await remote.close(file)


async def test_as_with_linuxs_own_driver(mount: Mount, remote: Remote, linux: Recording) -> None:
    async def find(name: str) -> str:
        await remote.exists_until(mount.file(name))
        return mount.file(name)

    async with mount.guest.open_monitor() as monitor:
        host = QemuHost(mount.guest, monitor, mount.device)
        ours = await record(remote, host, find, f"ours.{mount.device.slot}")
    check(linux, ours)


async def test_qemus_own_guest_agent(mount: Mount, remote: Remote) -> None:
    state = f"/run/agent.{mount.device.slot}"
    agent = f"qemu-ga -m virtio-serial -p {mount.file(mount.device.agent)}"
    async with await mount.guest.connect(mount.device.agent) as host:
        await remote.run(f"mkdir {state}; {agent} -d -t {state} -f {state}/pid -l {state}/log")
        try:
            assert await ask(host, "guest-ping") == {}
            info = await ask(host, "guest-info")
            assert "guest-ping" in [command["name"] for command in info["supported_commands"]]
        finally:
            await remote.run(f"kill $(cat {state}/pid); cat {state}/log")


async def ask(host: trio.SocketStream, command: str) -> Any:
    """Have a guest agent execute a command."""
    await host.send_all(json.dumps({"execute": command}).encode() + b"\n")
    answer = b""
    with trio.fail_after(30):
        while not answer.endswith(b"\n"):
            answer += await host.receive_some()
    return json.loads(answer)["return"]


async def test_unmounting_gives_the_device_back(
    mount: Mount, remote: Remote, host: trio.SocketStream
) -> None:
    path = mount.file(mount.device.data)
    driver = f"/sys/bus/pci/devices/{mount.device.address}/driver"
    ours = "virtio-pci" if mount.device is KERNELS else "vfio-pci"
    assert (await remote.readlink(driver)).endswith(f"/{ours}")
    file = await opened(remote, path)
    await remote.set_blocking(file, True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_to_the_end, remote, file)
        await remote.run(f"{VCONFS} umount {MOUNTPOINT}")
    await remote.exists_until(path, False)
    assert (await remote.readlink(driver)).endswith("/virtio-pci")
    file = await opened(remote, await remote.kernel_port(mount.device.data))
    assert await remote.write(file, b"from the kernel") == 15
    assert await receive_exactly(host, 15) == b"from the kernel"
    await host.send_all(b"to the kernel")
    await remote.poll_until(file, select.POLLIN)
    assert await remote.read(file, 100) == b"to the kernel"
    await remote.close(file)


async def read_to_the_end(remote: Remote, file: int) -> None:
    assert await remote.read(file, 100) == b""
    await remote.close(file)

"""Linux's own driver, virtio_console, as the guest of `vconfs host`.

User-mode Linux is the front-end of vhost-user, and the dialect is virtio1.
"""

from __future__ import annotations

import hashlib
import os
import select
from pathlib import Path

import pytest
import trio

from tests.qemu.changes import pattern, receive_exactly
from tests.support.compare.differences import check
from tests.support.compare.scenario import record_with_own_host
from tests.support.remote.client import Remote, open_local
from tests.uml.conftest import CONSOLE, DATA, OTHER
from tests.uml.hosts import VCONFS, HostEnd, open_host

pytestmark = pytest.mark.limit(120)

UNIT = pattern(1)[:251]
SIZE = 8 << 20


async def opened(remote: Remote, name: str) -> int:
    """Open a port, and wait until it knows of its host."""
    file = await remote.open(await remote.kernel_port(name))
    await remote.connected(file)
    return file


async def guest_state(host: HostEnd, name: str, state: str) -> None:
    """Wait until the guest has the port in that state."""
    with trio.fail_after(10):
        while (await host.ports())[name]["guest"] != state:
            pass


async def test_names(remote: Remote) -> None:
    assert await remote.kernel_port(CONSOLE) == "/dev/vport0p0"
    assert await remote.kernel_port(DATA) == "/dev/vport0p1"
    assert await remote.kernel_port(OTHER) == "/dev/vport0p2"


async def test_opening_and_closing(remote: Remote, host: HostEnd) -> None:
    await guest_state(host, DATA, "closed")
    file = await remote.open(await remote.kernel_port(DATA))
    await guest_state(host, DATA, "open")
    await remote.close(file)
    await guest_state(host, DATA, "closed")


async def test_much_data_both_ways_on_two_ports_at_once(remote: Remote, host: HostEnd) -> None:
    data = pattern(SIZE)[:SIZE]

    async def move(client: trio.SocketStream, file: int) -> None:
        await remote.set_blocking(file, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, data)
            nursery.start_soon(remote.write_repeated, file, UNIT, SIZE)
            nursery.start_soon(check_digest, file)
            assert await receive_exactly(client, SIZE, seconds=60) == data
        await remote.close(file)

    async def check_digest(file: int) -> None:
        assert await remote.read_digest(file, SIZE) == hashlib.sha256(data).hexdigest()

    async with (
        await host.connect(DATA) as one,
        await host.connect(OTHER) as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(move, one, await opened(remote, DATA))
        nursery.start_soon(move, other, await opened(remote, OTHER))


async def test_a_console_and_its_size(remote: Remote, host: HostEnd) -> None:
    await remote.run("stty -F /dev/hvc0 raw -echo")
    async with await host.connect(CONSOLE) as client:
        console = await remote.open("/dev/hvc0", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
        await remote.write(console, b"login: ")
        assert await receive_exactly(client, 7) == b"login: "
        await client.send_all(b"root\n")
        await remote.poll_until(console, select.POLLIN)
        assert await remote.read(console, 100) == b"root\n"
        for cols, rows in ((100, 30), (80, 25)):
            await host.resize(CONSOLE, cols, rows)
            with trio.fail_after(10):
                while await remote.run("stty -F /dev/hvc0 size") != f"{rows} {cols}\n":
                    pass
        await remote.close(console)


async def test_as_our_own_driver(remote: Remote, host: HostEnd, tmp_path: Path) -> None:
    """What a program sees in the guest of Linux's driver, and here of ours, on such a host end."""
    console = (CONSOLE, "/dev/hvc0")
    linux = await record_with_own_host(remote, host, remote.kernel_port, "linux", console)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    vconfs = " ".join(VCONFS)
    with open_host(tmp_path, {CONSOLE: ",id=0,console"}) as our_host:
        async with open_local() as local:

            async def find(name: str) -> str:
                path = f"{mountpoint}/by-name/{name}"
                await local.exists_until(path)
                return path

            try:
                await local.run(
                    f"{vconfs} mount --device vhost-user:{our_host.device} {mountpoint}"
                )
                console = (CONSOLE, f"{mountpoint}/hvc0")
                ours = await record_with_own_host(local, our_host, find, "ours", console)
            finally:
                await local.run(f"umount -l {mountpoint}")
    check(linux, ours)

"""A device that Linux's own driver leaves, and one whose host end is killed.

User-mode Linux 6.1 is in disorder afterwards (it warns of its interrupts, and has crashed), so each
of these tests has a guest of its own.
"""

from __future__ import annotations

import select
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.qemu.changes import Changes, pattern, receive_exactly, write_all
from tests.support.remote.client import Remote
from tests.uml.conftest import DATA, boot
from tests.uml.hosts import HostEnd, open_host
from tests.uml.kernels import Kernel
from tests.uml.machine import Guest
from tests.uml.test_driver import opened
from vconfs.device.vhost_user import open_vhost_user
from vconfs.guest.driver import drive
from vconfs.guest.port import Opener
from vconfs.guest.ports import PortManager

pytestmark = pytest.mark.limit(120)

PORTS = {DATA: ",id=1"}
UNIT = pattern(1)[:251]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostEnd]:
    with open_host(tmp_path, PORTS) as end:
        yield end


@pytest.fixture
def guest(
    tmp_path_factory: pytest.TempPathFactory, kernel: Kernel, host: HostEnd
) -> Iterator[Guest]:
    with boot(tmp_path_factory.mktemp("loser"), kernel, host) as booted:
        yield booted


async def exchange(remote: Remote, host: HostEnd) -> None:
    """Have a few bytes go both ways."""
    async with await host.connect(DATA) as client:
        file = await opened(remote, DATA)
        await client.send_all(b"question")
        await remote.poll_until(file, select.POLLIN)
        assert await remote.read(file, 100) == b"question"
        await remote.write(file, b"answer")
        assert await receive_exactly(client, 6) == b"answer"
        await remote.close(file)


async def test_the_driver_leaves_the_device_and_takes_it_again(
    remote: Remote, host: HostEnd, kernel: Kernel
) -> None:
    """While a port is open and data comes; then the whole module goes and comes."""
    driver = "/sys/bus/virtio/drivers/virtio_console"
    async with await host.connect(DATA) as client:
        file = await opened(remote, DATA)
        await remote.set_blocking(file, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_hung_up, client)
            await remote.read_digest(file, 1 << 20)
            async with trio.open_nursery() as reading:
                reading.start_soon(until_gone, remote.read_digest(file, 1 << 40))
                await remote.run(f"echo virtio0 >{driver}/unbind")
            assert await remote.poll(file) & select.POLLHUP
            await remote.close(file)
            await client.aclose()
    await remote.run(f"echo virtio0 >{driver}/bind")
    await exchange(remote, host)
    await remote.run("busybox rmmod virtio_console")
    await remote.exists_until("/dev/vport0p1", False)
    await remote.run(f"busybox insmod {kernel.module('virtio_console')}")
    await exchange(remote, host)


async def test_a_host_end_that_is_killed(remote: Remote, host: HostEnd) -> None:
    """The guest's programs see the port go, while data goes both ways."""
    async with await host.connect(DATA) as client:
        file = await opened(remote, DATA)
        await remote.set_blocking(file, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_hung_up, client)
            nursery.start_soon(until_gone, remote.read_digest(file, 1 << 40))
            nursery.start_soon(until_gone, remote.write_repeated(file, UNIT, 1 << 25))
            await receive_exactly(client, 1 << 20)
            host.process.kill()
    assert await remote.poll(file) & select.POLLHUP
    await remote.close(file)
    await remote.exists_until("/dev/vport0p1", False)


async def send_until_hung_up(client: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            await client.send_all(bytes(1 << 20))


async def until_gone(call: Awaitable[object]) -> None:
    with pytest.raises(OSError, match="No such device"):
        await call


async def test_the_next_host_end(host: HostEnd) -> None:
    """One that comes after one that was killed serves; user-mode Linux never comes back to it."""
    host.process.kill()
    host.process.wait()
    manager = PortManager()
    changes = Changes(manager)
    with open_host(host.folder, PORTS) as another:
        async with drive(manager, open_vhost_user(str(another.device), "virtio1")):
            port = await changes.named(1, DATA)
            async with await another.connect(DATA) as client:
                port.open(Opener(1))
                await changes.connected(port)
                await write_all(port, b"here again")
                assert await receive_exactly(client, 10) == b"here again"

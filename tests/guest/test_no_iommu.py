"""`vconfs mount` on a real device in a guest without an IOMMU: VFIO's no-IOMMU mode.

The tests share one guest, and each begins with what the one before has left.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
import trio

from tests.guest import guest as machine
from tests.guest.guest import MOUNTPOINT, VCONFS, VECTORS, Guest, open_guest
from tests.qemu import releases
from tests.qemu.changes import pattern, receive_exactly
from tests.support import needs
from tests.support.remote.client import Remote

pytestmark = pytest.mark.limit(120)

UNIT = pattern(1)[:251]
SIZE = 4 << 20
DRIVER = f"/sys/bus/pci/devices/{VECTORS.address}/driver"
PORT = f"{MOUNTPOINT}/by-name/{VECTORS.data}"
MOUNT = f"{VCONFS} mount --device pci:{VECTORS.address} {MOUNTPOINT}"
LOG = "/run/vconfs.log"
MEMORY = f"/dev/hugepages/vconfs-{VECTORS.address}"
PAGES = 32


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Boot a guest that has no IOMMU, and one console."""
    needs.programs(*machine.PROGRAMS, "make", "gcc")
    if problem := machine.fetch_unsafe():
        needs.cannot_run(problem)
    folder = tmp_path_factory.mktemp("guest")
    qemu = releases.require("own")
    with open_guest(folder, machine.CACHE, qemu, consoles=[VECTORS], iommu=False) as booted:
        trio.run(booted.wait_booted)
        yield booted


@pytest.fixture
async def remote(ordinary: Guest) -> AsyncIterator[Remote]:
    async with ordinary.open_remote() as remote:
        yield remote


async def driver_is(remote: Remote, name: str) -> bool:
    return (await remote.readlink(DRIVER)).endswith(f"/{name}")


async def free_pages(remote: Remote) -> int:
    folder = "/sys/kernel/mm/hugepages/hugepages-2048kB"
    return int(await remote.run(f"cat {folder}/free_hugepages"))


async def transfer(guest: Guest, remote: Remote) -> None:
    """Check an echo and much data, in both directions."""
    data = pattern(SIZE)[:SIZE]
    async with await guest.connect(VECTORS.data) as host:
        file = await remote.open(PORT)
        await remote.connected(file)
        await remote.set_blocking(file, True)
        await host.send_all(b"question")
        assert await remote.read(file, 100) == b"question"
        assert await remote.write(file, b"answer") == 6
        assert await receive_exactly(host, 6) == b"answer"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.send_all, data)
            assert await remote.read_digest(file, SIZE) == hashlib.sha256(data).hexdigest()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remote.write_repeated, file, UNIT, SIZE)
            assert await receive_exactly(host, SIZE, seconds=30) == data
        await remote.close(file)


async def test_without_the_mode_the_error_says_how_to_turn_it_on(remote: Remote) -> None:
    said = await remote.run(f"mkdir -p {MOUNTPOINT}; {MOUNT} --bind", status=1)
    assert f"{VECTORS.address} has no IOMMU" in said
    switch = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    assert said.endswith(f"; as root: echo Y >{switch}\n")
    assert len(said.splitlines()) == 1
    assert await driver_is(remote, "virtio-pci")


async def test_doctor_names_the_commands_that_set_it_up(remote: Remote) -> None:
    lines = (await remote.run(f"{VCONFS} doctor --json")).splitlines()
    findings = {finding["check"]: finding for finding in map(json.loads, lines)}
    for check in ("iommu", "huge-pages"):
        assert findings[check]["state"] == "optional"
        _, _, command = findings[check]["advice"].partition("as root: ")
        await remote.run(command)
    assert await free_pages(remote) == PAGES
    said = await remote.run(f"{VCONFS} bind {VECTORS.address}")
    assert said == ""
    assert await driver_is(remote, "vfio-pci")


async def test_no_hugetlbfs(remote: Remote) -> None:
    said = await remote.run(MOUNT, status=1)
    _, _, command = said.partition("no hugetlbfs is mounted, for huge pages; as root: ")
    await remote.run(command)


async def test_a_daemon_that_is_killed_and_the_next_one(ordinary: Guest, remote: Remote) -> None:
    """The memory of the killed one stays until the next one has the device."""
    await remote.run(f"{MOUNT} --log {LOG}")
    said = await remote.run(f"cat {LOG}")
    logged = re.search(rf"vconfs\[(\d+)\]: warning: {VECTORS.address} has no IOMMU", said)
    assert logged
    await transfer(ordinary, remote)
    async with await ordinary.connect(VECTORS.data) as host:
        file = await remote.open(PORT)
        await remote.connected(file)
        await remote.set_blocking(file, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, host)
            assert await remote.read_digest(file, SIZE // 4)
            await remote.run(f"kill -KILL {logged[1]}; umount -l {MOUNTPOINT}")
            nursery.cancel_scope.cancel()
        with suppress(OSError):  # close(2) on a mount whose daemon is dead
            await remote.close(file)
    assert await free_pages(remote) == 0
    await remote.run(f"{MOUNT} --log {LOG}")
    await transfer(ordinary, remote)


async def flood(host: trio.SocketStream) -> None:
    while True:
        await host.send_all(UNIT)


async def test_the_memory_is_given_back(ordinary: Guest, remote: Remote) -> None:
    await remote.run(f"umount {MOUNTPOINT}")
    await remote.exists_until(MEMORY, False)
    await remote.run(f"{VCONFS} unbind {VECTORS.address}")
    assert await driver_is(remote, "virtio-pci")
    assert await free_pages(remote) == PAGES
    async with await ordinary.connect(VECTORS.data) as host:
        file = await remote.open(await remote.kernel_port(VECTORS.data))
        assert await remote.write(file, b"from the kernel") == 15
        assert await receive_exactly(host, 15) == b"from the kernel"
        await remote.close(file)

"""`vconfs mount` on a real device in a guest without an IOMMU: VFIO's no-IOMMU mode.

The tests share one guest, and each begins with what the one before has left.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
import trio

from tests.guest import guest as machine
from tests.guest.guest import MOUNTPOINT, VCONFS, VECTORS, Guest, open_guest
from tests.guest.transfers import UNIT, check_both_ways
from tests.qemu import releases
from tests.qemu.changes import receive_exactly
from tests.support import needs
from tests.support.remote.client import Remote
from vconfs.protocol.virtio_pci import COMMAND, COMMAND_MASTER
from vconfs.system.huge_pages import MOUNT_COMMAND

pytestmark = pytest.mark.limit(120)

SIZE = 4 << 20
FUNCTION = f"/sys/bus/pci/devices/{VECTORS.address}"
PORT = f"{MOUNTPOINT}/by-name/{VECTORS.data}"
MOUNT = f"{VCONFS} mount --device pci:{VECTORS.address} {MOUNTPOINT}"
LOG = "/run/vconfs.log"
MEMORY = f"/dev/hugepages/vconfs-{VECTORS.address}"
PAGES = 32


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Boot a guest that has no IOMMU, and one console."""
    needs.programs(*machine.PROGRAMS, *machine.BUILDERS)
    if problem := machine.fetch_unsafe():
        needs.cannot_run(problem)
    folder = tmp_path_factory.mktemp("guest")
    qemu = releases.require("own")
    with open_guest(
        folder, machine.CACHE, qemu, consoles=[VECTORS], hardware=machine.PLAIN
    ) as booted:
        trio.run(booted.wait_booted)
        yield booted


@pytest.fixture
async def remote(ordinary: Guest) -> AsyncIterator[Remote]:
    async with ordinary.open_remote() as remote:
        yield remote


async def driver_is(remote: Remote, name: str) -> bool:
    return (await remote.readlink(f"{FUNCTION}/driver")).endswith(f"/{name}")


async def free_pages(remote: Remote) -> int:
    folder = "/sys/kernel/mm/hugepages/hugepages-2048kB"
    return int(await remote.run(f"cat {folder}/free_hugepages"))


async def transfer(guest: Guest, remote: Remote) -> None:
    """Check an echo and much data, in both directions."""
    async with await guest.connect(VECTORS.data) as host:
        file = await remote.open(PORT)
        await remote.connected(file)
        await remote.set_blocking(file, True)
        await host.send_all(b"question")
        assert await remote.read(file, 100) == b"question"
        assert await remote.write(file, b"answer") == 6
        assert await receive_exactly(host, 6) == b"answer"
        await check_both_ways(remote, file, host, SIZE)
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
    await remote.run(MOUNT_COMMAND)  # as systemd does
    assert await free_pages(remote) == PAGES
    await remote.run(f"{VCONFS} bind {VECTORS.address}")
    assert await driver_is(remote, "vfio-pci")


async def test_data_and_pages_that_do_not_move(ordinary: Guest, remote: Remote) -> None:
    await remote.run(f"{MOUNT} --log {LOG}")
    await transfer(ordinary, remote)
    pid = await daemon(remote)
    before, after = (await remote.run(f"{sys.executable} -c '{MOVE}' {pid}")).split()
    assert before == after
    assert "hugepage migration failed" in await remote.run("dmesg")
    await transfer(ordinary, remote)


#: Asks the kernel to move the first page of the memory. Prints where it is before and after.
MOVE = """
import sys
page = 4096
maps = open(f"/proc/{sys.argv[1]}/maps").read().splitlines()
start = int(next(line for line in maps if "hugepages" in line).split("-")[0], 16)
def find():
    with open(f"/proc/{sys.argv[1]}/pagemap", "rb", buffering=0) as file:
        file.seek(start // page * 8)
        return (int.from_bytes(file.read(8), "little") & (1 << 55) - 1) * page
print(find())
try:
    open("/sys/devices/system/memory/soft_offline_page", "w").write(hex(find()))
except OSError:
    pass
print(find())
"""


async def daemon(remote: Remote) -> int:
    """Return the process ID of the daemon, which has logged its warning."""
    said = await remote.run(f"cat {LOG}")
    found = re.search(rf"vconfs\[(\d+)\]: warning: {VECTORS.address} has no IOMMU", said)
    assert found
    return int(found[1])


async def test_a_daemon_is_killed_while_the_device_sends(ordinary: Guest, remote: Remote) -> None:
    """The pages stay with their file, which is removed once the device is closed."""
    async with await ordinary.connect(VECTORS.data) as host:
        file = await remote.open(PORT)
        await remote.connected(file)
        await remote.set_blocking(file, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, host)
            assert await remote.read_digest(file, SIZE // 4)
            pid = await daemon(remote)
            await remote.run(f"kill -KILL {pid}; umount -l {MOUNTPOINT}")
            nursery.cancel_scope.cancel()
        with suppress(OSError):  # close(2) on a mount whose daemon is dead
            await remote.close(file)
    await remote.exists_until(f"/proc/{pid}", False)
    command = int(await remote.run(f"od -An -tu1 -j {COMMAND} -N 1 {FUNCTION}/config"))
    assert not command & COMMAND_MASTER
    assert await free_pages(remote) == 0
    await remote.run(f"{VCONFS} unbind {VECTORS.address}")
    assert await driver_is(remote, "virtio-pci")
    assert await free_pages(remote) == PAGES


async def flood(host: trio.SocketStream) -> None:
    while True:
        await host.send_all(UNIT)


async def test_the_next_daemon_and_a_device_that_comes_again(
    ordinary: Guest, remote: Remote
) -> None:
    await remote.run(f"{MOUNT} --bind")
    await transfer(ordinary, remote)
    async with await ordinary.connect(VECTORS.data):
        file = await remote.open(PORT)
        await remote.connected(file)
        await remote.run(f"echo 1 >{FUNCTION}/remove")
        await remote.connected(file, False)
        await remote.run("echo 1 >/sys/bus/pci/rescan")
        await remote.connected(file)
        await remote.close(file)
    await transfer(ordinary, remote)


async def test_everything_is_given_back(ordinary: Guest, remote: Remote) -> None:
    await remote.run(f"umount {MOUNTPOINT}")
    await remote.exists_until(MEMORY, False)
    async with await ordinary.connect(VECTORS.data) as host:
        file = await remote.open(await remote.kernel_port(VECTORS.data))
        assert await remote.write(file, b"from the kernel") == 15
        assert await receive_exactly(host, 15) == b"from the kernel"
        await remote.close(file)
    assert await driver_is(remote, "virtio-pci")
    assert await free_pages(remote) == PAGES

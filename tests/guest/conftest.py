"""One guest for all tests of this folder, and in it one mount after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from attrs import frozen

from tests.guest import guest as machine
from tests.guest.guest import KERNELS, LINE, MOUNTPOINT, VCONFS, VECTORS, Console, Guest, open_guest
from tests.qemu import releases
from tests.qemu.machine import Monitor
from tests.support import needs
from tests.support.compare.scenario import Recording, record
from tests.support.remote.client import Remote

#: The id of ports that are plugged.
_PLUGGED = 8


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch the kernels before the first test: that may take longer than a test may."""
    folder = Path(__file__).parent
    wanted = any(item.path.is_relative_to(folder) for item in session.items)
    if wanted and not session.config.option.collectonly and not needs.missing(*machine.PROGRAMS):
        for release in machine.BOOT:
            machine.fetch(release)
        bare = any(item.path.name == "test_no_iommu.py" for item in session.items)
        if bare and not needs.missing(*machine.BUILDERS):
            machine.fetch_unsafe()
        if "newest" in RELEASES:
            releases.fetch()


#: The releases of QEMU that the tests run with. The newest is for `VCONFS_LONG=1`.
RELEASES = [*releases.PROGRAMS] if releases.LONG else ["own"]


@pytest.fixture(scope="package", params=RELEASES)
def guest(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Guest]:
    """Boot the guest; its status is that of the tests."""
    needs.programs(*machine.PROGRAMS)
    if problem := machine.fetch():
        needs.cannot_run(problem)
    qemu = releases.require(request.param)
    with open_guest(tmp_path_factory.mktemp("guest"), machine.CACHE, qemu) as booted:
        trio.run(booted.wait_booted)
        yield booted
        status = 1 if request.session.testsfailed else 0
        trio.run(booted.end, status)
        booted.check_ended(status)


@frozen
class Mount:
    """A mount in the guest, and the device whose ports the tests use."""

    guest: Guest
    device: Console
    #: What `vconfs mount` was told.
    options: str

    def file(self, name: str) -> str:
        return f"{MOUNTPOINT}/by-name/{name}"


@frozen
class QemuHost:
    """QEMU as the host of one port that comes and goes: see `compare.scenario.Host`."""

    guest: Guest
    monitor: Monitor
    device: Console

    async def plug(self, name: str) -> None:
        await self.monitor.plug(_PLUGGED, name, bus=self.device.bus)

    async def unplug(self, name: str) -> None:
        await self.monitor.unplug(_PLUGGED)

    async def connect(self, name: str) -> trio.SocketStream:
        return await self.guest.connect(name)


@pytest.fixture(scope="package")
def linux(guest: Guest) -> Recording:
    """What a program sees of a port of the kernel's own driver."""

    async def run() -> Recording:
        async with guest.open_remote() as remote, guest.open_monitor() as monitor:
            host = QemuHost(guest, monitor, KERNELS)
            return await record(remote, host, remote.kernel_port, "linux")

    return trio.run(run)


MOUNTS = {
    "vectors": (VECTORS, f"--device pci:{VECTORS.address} --bind"),
    "line": (LINE, f"--device pci:{LINE.address} --bind"),
    "kernel": (KERNELS, "--device kernel"),
}


@pytest.fixture(scope="module", params=MOUNTS)
def mount(guest: Guest, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """Mount a device's ports in the guest, by command."""
    mounted = Mount(guest, *MOUNTS[request.param])
    trio.run(_run, guest, f"mkdir -p {MOUNTPOINT}; {VCONFS} mount {mounted.options} {MOUNTPOINT}")
    yield mounted
    trio.run(_run, guest, f"! mountpoint -q {MOUNTPOINT} || umount {MOUNTPOINT}")


async def _run(guest: Guest, command: str) -> None:
    async with guest.open_remote() as remote:
        await remote.run(command)


@pytest.fixture
async def remote(guest: Guest) -> AsyncIterator[Remote]:
    async with guest.open_remote() as remote:
        yield remote

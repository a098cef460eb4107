"""Another host end at the other end of a guest's serial line, under a mount.

The guest is one of its own: a line is not known to be good after a mount that was taken away.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.qemu.changes import receive_exactly
from tests.support.remote.client import Remote
from tests.uml.conftest import boot
from tests.uml.hosts import VCONFS, HostEnd, open_host
from tests.uml.kernels import Kernel
from tests.uml.line import MOUNTPOINT, NAMES, file_of, opened
from tests.uml.machine import ROOT, Guest

pytestmark = pytest.mark.limit(120)


@pytest.fixture(scope="module")
def guest(
    tmp_path_factory: pytest.TempPathFactory, kernel: Kernel, host: HostEnd
) -> Iterator[Guest]:
    with boot(tmp_path_factory.mktemp("guest"), kernel, host) as booted:
        yield booted


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, kernel: Kernel) -> Iterator[HostEnd]:
    with open_host(tmp_path_factory.mktemp("host"), {}) as end:
        yield end


async def test_another_host_end(
    remote: Remote, guest: Guest, line_host: HostEnd, tmp_path: Path
) -> None:
    """Ports hang up when the host end leaves, and come back with another one that has them.

    examples/udev-links.sh runs through this, and ends with the mount.
    """
    links = f"{ROOT}/examples/udev-links.sh {MOUNTPOINT} /run/links"
    await remote.run(f"{links} >/run/links.log 2>&1 &")
    await remote.exists_until(f"/run/links/{NAMES[0]}")
    async with await line_host.connect(NAMES[2]):
        file = await opened(remote, file_of(NAMES[2]))
        inode = await remote.run(f"stat -L -c %i {file_of(NAMES[2])}")
        line_host.process.terminate()
        await remote.connected(file, False)
    assert await trio.to_thread.run_sync(line_host.process.wait) == 0
    with open_host(tmp_path, dict.fromkeys(NAMES[:3], ""), guest.line) as host:
        async with await host.connect(NAMES[2]) as client:
            await remote.connected(file)
            await remote.exists_until(f"{MOUNTPOINT}/vcon3", False)
            assert await remote.run(f"stat -L -c %i {file_of(NAMES[2])}") == inode
            await remote.write(file, b"still here")
            assert await receive_exactly(client, 10) == b"still here"
            await remote.close(file)
            await remote.run(f"{' '.join(VCONFS)} umount {MOUNTPOINT}")
            assert await trio.to_thread.run_sync(host.process.wait) == 0
    await remote.exists_until(f"/run/links/{NAMES[0]}", False)

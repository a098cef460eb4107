"""Taking a console from the kernel's driver and giving it back, by command, in a booted guest."""

from __future__ import annotations

import pytest

from tests.guest.guest import DEVICES, MOUNTPOINT, VCONFS, VECTORS
from tests.support.remote.client import Remote

pytestmark = pytest.mark.limit(120)

DRIVER = f"/sys/bus/pci/devices/{VECTORS.address}/driver"


async def test_bind_and_unbind(remote: Remote) -> None:
    await remote.run(f"{VCONFS} bind {VECTORS.address}")
    assert (await remote.readlink(DRIVER)).endswith("/vfio-pci")
    listed = [line.split() for line in (await remote.run(f"{VCONFS} bind")).splitlines()]
    expected = {device.address: "virtio-pci" for device in DEVICES}
    assert dict(listed) == expected | {VECTORS.address: "vfio-pci"}
    await remote.run(f"{VCONFS} unbind {VECTORS.address}")
    assert (await remote.readlink(DRIVER)).endswith("/virtio-pci")
    await remote.kernel_port(VECTORS.data)


async def test_a_device_that_was_not_bound_is_refused(remote: Remote) -> None:
    command = f"{VCONFS} mount --device pci:{VECTORS.address} {MOUNTPOINT}"
    said = await remote.run(f"mkdir -p {MOUNTPOINT}; {command}", status=1)
    assert "belongs to virtio-pci" in said
    assert len(said.splitlines()) == 1


async def test_a_wrong_address_is_answered_with_the_right_ones(remote: Remote) -> None:
    said = await remote.run(f"{VCONFS} mount --device pci:0000:00:1e.0 /mnt", status=1)
    assert ", ".join(device.address for device in DEVICES) in said
    assert len(said.splitlines()) == 1

"""A real virtio console through VFIO, inside of a booted guest: with MSI-X, and without."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.guest import guest
from tests.guest.inside import ADDRESS, LINE_ADDRESS, NAME, SIZE
from tests.qemu.changes import pattern, receive_exactly
from tests.qemu.machine import QEMU, listener
from vconfs.background import open_background

pytestmark = [
    pytest.mark.skipif(guest.missing(), reason=f"{QEMU}, apt-get or busybox is not installed"),
    pytest.mark.timeout(300),
]


def device(address: str, listening: socket.socket, options: str = "") -> list[str]:
    end = address[-4:]
    slot = end[:2]
    common = "disable-legacy=on,iommu_platform=on"
    number = listening.fileno()
    return [
        *("-device", f"virtio-serial-pci,id=v{slot},{common},addr={slot}{options}"),
        *("-chardev", f"socket,id=c{slot},fd={number},server=on,wait=off"),
        *("-device", f"virtserialport,bus=v{slot}.0,chardev=c{slot},nr=1,name={NAME}.{end}"),
    ]


async def test_vfio(tmp_path: Path) -> None:
    boot = await trio.to_thread.run_sync(guest.kernel)
    if boot is None:
        pytest.skip("the guest's kernel cannot be fetched")
    paths = [tmp_path / "vectors", tmp_path / "line"]
    with listener(paths[0]) as one, listener(paths[1]) as two:
        arguments = device(ADDRESS, one) + device(LINE_ADDRESS, two, ",vectors=0")
        async with (
            guest.open_guest(
                tmp_path, boot, "tests.guest.inside", arguments, (one.fileno(), two.fileno())
            ) as booted,
            open_background() as nursery,
        ):
            for path in paths:
                nursery.start_soon(be_the_host, path)
            await booted.check_ended_well()
            assert booted.console.count("well:") == 2


async def be_the_host(path: Path) -> None:
    """Send, get the same back, say so; then the kernel's driver says something."""
    with suppress(trio.BrokenResourceError):  # QEMU has ended: it says why
        async with await trio.open_unix_socket(path) as stream:
            data = pattern(SIZE)[:SIZE]
            await stream.send_all(data)
            assert await receive_exactly(stream, SIZE, seconds=guest.SECONDS) == data
            await stream.send_all(b"end")
            assert await receive_exactly(stream, 15, seconds=guest.SECONDS) == b"from the kernel"
            await trio.sleep_forever()

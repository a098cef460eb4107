"""What the VFIO test runs inside of the guest, as root."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from tests.qemu.changes import Changes, pattern, read_exactly, write_all
from vconfs.device.binding import PciFunction, bound, candidates
from vconfs.device.errors import DeviceError
from vconfs.device.vfio import open_vfio
from vconfs.port import Opener
from vconfs.ports import PortManager

ADDRESS = "0000:00:10.0"
LINE_ADDRESS = "0000:00:11.0"  # the same device without MSI-X
NAME = "org.example.vfio"
SIZE = 8 << 20


async def main() -> None:
    assert candidates() == [ADDRESS, LINE_ADDRESS], candidates()
    for address in candidates():
        function = PciFunction(address)
        assert function.driver == "virtio-pci"
        await check_that_it_must_be_bound(address)
        with bound(function):
            assert function.driver == "vfio-pci"
            await check_device(address)
        assert function.driver == "virtio-pci", function.driver
        check_kernel_driver(f"{NAME}.{address[-4:]}")
        print("well:", address, flush=True)


async def check_that_it_must_be_bound(address: str) -> None:
    try:
        async with open_vfio(PortManager(), address):
            pass
    except DeviceError as error:
        assert "belongs to virtio-pci" in str(error), error
    else:
        raise AssertionError("a function that has another driver was opened")


async def check_device(address: str) -> None:
    """Drive it, take what the host sends, and send it back."""
    manager = PortManager()
    changes = Changes(manager)
    async with open_vfio(manager, address) as driver:
        port = await changes.named(1, f"{NAME}.{address[-4:]}")
        await changes.connected(port)
        port.open(Opener(1))
        data = await read_exactly(port, SIZE, seconds=60)
        assert data == pattern(SIZE)[:SIZE]
        await write_all(port, data)
        assert await read_exactly(port, 3) == b"end"
        assert driver.reason == ""
        assert manager.ignored == 0


def check_kernel_driver(name: str) -> None:
    """The kernel's driver has the device again, and it works."""
    for path in Path("/sys/class/virtio-ports").iterdir():
        if (path / "name").read_text().strip() == name:
            device = os.open(Path("/dev") / path.name, os.O_RDWR)
            assert os.write(device, b"from the kernel") == 15
            os.close(device)
            return
    raise AssertionError(f"the kernel has no port {name}")


if __name__ == "__main__":
    trio.run(main)

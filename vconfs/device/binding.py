"""Which driver of the kernel has a PCI function: looked up, changed and put back through sysfs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vconfs.device.errors import DeviceError
from vconfs.protocol import virtio_pci

SYSFS: Final = Path("/sys")
VFIO_DRIVER: Final = "vfio-pci"

_ADDRESS: Final = re.compile(
    r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE
)


def parse_address(text: str) -> str:
    """Give a PCI address in full, as `0000:00:05.0`; ValueError: it is none."""
    found = _ADDRESS.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no PCI address: they look like 0000:00:05.0")
    domain, bus, slot, function = found.groups()
    return f"{domain or '0000'}:{bus}:{slot}.{function}".lower()


class PciFunction:
    """One PCI function in sysfs. DeviceError: there is no such function."""

    def __init__(self, address: str, sysfs: Path = SYSFS) -> None:
        self.address = address
        self._sysfs = sysfs
        self._path = sysfs / "bus/pci/devices" / address
        if not self._path.exists():
            found = ", ".join(candidates(sysfs)) or "none"
            raise DeviceError(f"there is no PCI function {address}; virtio consoles: {found}")

    @property
    def driver(self) -> str:
        """The driver that has the function; empty: none has."""
        return _link_name(self._path / "driver")

    @property
    def group(self) -> str:
        """The function's IOMMU group. DeviceError: there is no IOMMU for it."""
        group = _link_name(self._path / "iommu_group")
        if not group:
            raise DeviceError(
                f"{self.address} has no IOMMU: boot with intel_iommu=on, or give the machine one"
            )
        return group

    @property
    def group_neighbours(self) -> list[str]:
        """The other functions of the IOMMU group that a driver other than VFIO has."""
        devices = self._path / "iommu_group" / "devices"
        others = sorted(path.name for path in devices.iterdir() if path.name != self.address)
        return [
            other
            for other in others
            if PciFunction(other, self._sysfs).driver not in ("", VFIO_DRIVER, "pcieport")
        ]

    def bind(self, driver: str = VFIO_DRIVER) -> None:
        """Give the console to a driver and to no other.

        DeviceError: it is no virtio console, or the driver does not take it.
        """
        if self.address not in candidates(self._sysfs):
            raise DeviceError(f"{self.address} is not a virtio console")
        self._override(driver)
        if self.driver != driver:
            self._override("\n")
            raise DeviceError(f"{driver} does not take {self.address}: is its module loaded?")

    def unbind(self) -> None:
        """Give the function back to the driver that the kernel chooses."""
        self._override("\n")

    def _override(self, driver: str) -> None:
        try:
            _write(self._path / "driver_override", driver)
            if self.driver:
                _write(self._path / "driver" / "unbind", self.address)
            _write(self._sysfs / "bus/pci/drivers_probe", self.address)
        except OSError as error:
            raise DeviceError(f"cannot bind {self.address}: {error.strerror}") from None


@contextmanager
def bound(function: PciFunction, driver: str = VFIO_DRIVER) -> Iterator[None]:
    """Give a function to a driver for as long as the block runs."""
    if function.driver == driver:
        yield
        return
    function.bind(driver)
    try:
        yield
    finally:
        function.unbind()


def candidates(sysfs: Path = SYSFS) -> list[str]:
    """Give the addresses of all virtio consoles."""
    found = []
    for path in sorted((sysfs / "bus/pci/devices").glob("*")):
        try:
            words = [int((path / name).read_text(), 16) for name in ("vendor", "device")]
        except (OSError, ValueError):
            continue
        if virtio_pci.is_console(b"".join((word & 0xFFFF).to_bytes(2, "little") for word in words)):
            found.append(path.name)
    return found


def _link_name(path: Path) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())

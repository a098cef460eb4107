"""Finding and changing, through sysfs, the kernel's driver of a PCI function."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vconfs.errors import VconfsError
from vconfs.protocol import virtio_pci

log: Final = logging.getLogger(__name__)

SYSFS: Final = Path("/sys")
VFIO_DRIVER: Final = "vfio-pci"

#: Drivers of functions that may share an IOMMU group with one of VFIO's.
_HARMLESS: Final = ("", VFIO_DRIVER, "pci-stub", "pcieport")

#: The switch of VFIO's no-IOMMU mode, and the name of a group in that mode.
_UNSAFE_MODE: Final = "module/vfio/parameters/enable_unsafe_noiommu_mode"
_UNSAFE_GROUP: Final = "vfio-noiommu"

_ADDRESS: Final = re.compile(
    r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE
)


def parse_address(text: str) -> str:
    """Return a PCI address in full, like `0000:00:05.0`. Raise ValueError if it is not one."""
    found = _ADDRESS.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a PCI address, like 0000:00:05.0")
    domain, bus, slot, function = found.groups()
    return f"{domain or '0000'}:{bus}:{slot}.{function}".lower()


class PciFunction:
    """One PCI function in sysfs. Raise VconfsError if it does not exist."""

    def __init__(self, address: str, sysfs: Path | None = None) -> None:
        self.address = address
        self._sysfs = sysfs or SYSFS
        self._path = self._sysfs / "bus/pci/devices" / address
        if not self.exists:
            raise VconfsError(
                f"there is no PCI function {address}; {_list_candidates(self._sysfs)}"
            )

    @property
    def exists(self) -> bool:
        """True if the machine still has the function."""
        return self._path.exists()

    def check_console(self) -> None:
        """Raise VconfsError if the function is not a virtio console."""
        if self.address not in candidates(self._sysfs):
            found = _list_candidates(self._sysfs)
            raise VconfsError(f"{self.address} is not a virtio console; {found}")

    @property
    def driver(self) -> str:
        """The function's driver, or an empty text if it has none."""
        return _link_name(self._path / "driver")

    @property
    def has_iommu(self) -> bool:
        """True if an IOMMU translates the function's accesses to memory."""
        return not lacks_iommu(self.address, self._sysfs)

    @property
    def group(self) -> str:
        """The name of the function's group below /dev/vfio, or an empty text if it has none.

        Without an IOMMU, it has one while it is bound to VFIO.
        """
        number = _link_name(self._path / "iommu_group")
        return number if self.has_iommu or not number else f"noiommu-{number}"

    def check_iommu(self) -> None:
        """Raise VconfsError if VFIO cannot use the function because it has no IOMMU."""
        if not self.has_iommu and not is_unsafe_mode_on(self._sysfs):
            raise VconfsError(
                f"{self.address} has no IOMMU: boot with intel_iommu=on, give the machine one, or"
                f" allow VFIO to do without (docs/security.md); {unsafe_mode_advice(self._sysfs)}"
            )

    def check_group(self) -> None:
        """Raise VconfsError if a driver other than VFIO's uses a function of the IOMMU group."""
        self.check_iommu()
        if not self.has_iommu:
            return
        devices = self._sysfs / "kernel/iommu_groups" / self.group / "devices"
        others = sorted(path.name for path in devices.iterdir() if path.name != self.address)
        drivers = {other: PciFunction(other, self._sysfs).driver for other in others}
        taken = [
            f"{other} ({driver})" for other, driver in drivers.items() if driver not in _HARMLESS
        ]
        if taken:
            raise VconfsError(
                f"the IOMMU group of {self.address} is not viable: drivers have {', '.join(taken)}"
            )

    def bind(self) -> None:
        """Bind the console to VFIO.

        Raise VconfsError, and change nothing, if it is not a virtio console, if VFIO could not use
        it, or if VFIO does not take it.
        """
        self.check_console()
        self.check_group()
        if not (self._sysfs / "bus/pci/drivers" / VFIO_DRIVER).exists():
            raise VconfsError(
                f"the driver {VFIO_DRIVER} is not loaded: as root, modprobe {VFIO_DRIVER}"
            )
        try:
            self._override(VFIO_DRIVER)
            if self.driver != VFIO_DRIVER:
                raise VconfsError(
                    f"{VFIO_DRIVER} does not take {self.address}: the kernel's log says why"
                )
        except VconfsError:
            with suppress(VconfsError):
                self.unbind()
            raise

    def unbind(self) -> None:
        """Bind the function to the driver that the kernel chooses."""
        self._override("\n")

    def _override(self, driver: str) -> None:
        try:
            _write(self._path / "driver_override", driver)
            if self.driver:
                _write(self._path / "driver" / "unbind", self.address)
            _write(self._sysfs / "bus/pci/drivers_probe", self.address)
        except OSError as error:
            hint = ": only root can do that" if error.errno in (errno.EACCES, errno.EPERM) else ""
            raise VconfsError(f"cannot bind {self.address}: {error.strerror}{hint}") from None


@contextmanager
def bound(function: PciFunction) -> Iterator[None]:
    """Bind a function to VFIO while the block runs.

    If it cannot be given back to its driver, log that, unless it is gone.
    """
    if function.driver == VFIO_DRIVER:
        yield
        return
    function.bind()
    try:
        yield
    finally:
        try:
            function.unbind()
        except VconfsError as error:
            if function.exists:
                log.warning("%s stays with %s: %s", function.address, VFIO_DRIVER, error)


def lacks_iommu(address: str, sysfs: Path | None = None) -> bool:
    """True if no IOMMU translates the accesses of that PCI function to memory."""
    group = (sysfs or SYSFS) / "bus/pci/devices" / address / "iommu_group"
    return not group.exists() or not is_isolated(group)


def is_isolated(group: Path) -> bool:
    """True if a folder of sysfs is an IOMMU's group, and not one that VFIO made without one."""
    name = group / "name"
    return not name.exists() or name.read_text().strip() != _UNSAFE_GROUP


def is_unsafe_mode_on(sysfs: Path) -> bool:
    """True if VFIO drives functions that have no IOMMU (its no-IOMMU mode)."""
    switch = sysfs / _UNSAFE_MODE
    return switch.exists() and switch.read_text().strip() == "Y"


def unsafe_mode_advice(sysfs: Path) -> str:
    """Return how to turn VFIO's no-IOMMU mode on."""
    if (sysfs / _UNSAFE_MODE).exists():
        return f"as root: echo Y >{SYSFS / _UNSAFE_MODE}"
    if (sysfs / "module/vfio").exists():
        return "with a kernel that has CONFIG_VFIO_NOIOMMU, or use --device kernel"
    return "as root: modprobe vfio enable_unsafe_noiommu_mode=1"


def candidates(sysfs: Path | None = None) -> list[str]:
    """Return the addresses of all virtio consoles."""
    found = []
    for path in sorted(((sysfs or SYSFS) / "bus/pci/devices").glob("*")):
        try:
            words = [int((path / name).read_text(), 16) for name in ("vendor", "device")]
        except (OSError, ValueError):
            continue
        if virtio_pci.is_console(b"".join((word & 0xFFFF).to_bytes(2, "little") for word in words)):
            found.append(path.name)
    return found


def _list_candidates(sysfs: Path) -> str:
    return f"virtio consoles: {', '.join(candidates(sysfs)) or 'none'}"


def _link_name(path: Path) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())

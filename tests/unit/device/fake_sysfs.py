"""A /sys of files, with two PCI functions."""

from __future__ import annotations

from pathlib import Path

CONSOLE = "0000:00:05.0"
OTHER = "0000:00:06.0"


def make_sysfs(folder: Path) -> Path:
    """Make a folder that looks like /sys: a console and another function, in one IOMMU group."""
    for address, device in ((CONSOLE, "0x1043"), (OTHER, "0x1041")):
        path = folder / "bus/pci/devices" / address
        path.mkdir(parents=True)
        (path / "vendor").write_text("0x1af4\n")
        (path / "device").write_text(device + "\n")
        (path / "driver_override").write_text("")
        group = folder / "kernel/iommu_groups/3"
        (group / "devices").mkdir(parents=True, exist_ok=True)
        (path / "iommu_group").symlink_to(group)
        (group / "devices" / address).symlink_to(path)
    (folder / "bus/pci/drivers_probe").write_text("")
    return folder


def give(sysfs: Path, address: str, driver: str) -> None:
    """Do what the kernel does when a driver takes a function."""
    home = sysfs / "bus/pci/drivers" / driver
    home.mkdir(parents=True, exist_ok=True)
    (home / "unbind").write_text("")
    link = sysfs / "bus/pci/devices" / address / "driver"
    link.unlink(missing_ok=True)
    link.symlink_to(home)

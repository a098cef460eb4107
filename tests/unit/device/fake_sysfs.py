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
    (folder / "bus/pci/drivers/vfio-pci").mkdir(parents=True)
    return folder


def take_iommu_away(sysfs: Path, *, mode: str = "") -> None:
    """Have the console lack an IOMMU, and VFIO's no-IOMMU mode be Y, N, or not be there."""
    link = sysfs / "bus/pci/devices" / CONSOLE / "iommu_group"
    group = link.resolve()
    if mode == "Y" and (sysfs / "bus/pci/devices" / CONSOLE / "driver").exists():
        (group / "devices" / OTHER).unlink()
        (group / "name").write_text("vfio-noiommu\n")  # VFIO has made it
    else:
        link.unlink()
    if mode:
        switch = sysfs / "module/vfio/parameters/enable_unsafe_noiommu_mode"
        switch.parent.mkdir(parents=True)
        switch.write_text(f"{mode}\n")


def give(sysfs: Path, address: str, driver: str) -> None:
    """Do what the kernel does when a driver takes a function."""
    home = sysfs / "bus/pci/drivers" / driver
    home.mkdir(parents=True, exist_ok=True)
    (home / "unbind").write_text("")
    link = sysfs / "bus/pci/devices" / address / "driver"
    link.unlink(missing_ok=True)
    link.symlink_to(home)

"""Checks for what vconfs needs on a machine, with advice on how to get what is missing."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from attrs import field, frozen
from packaging.requirements import Requirement

from vconfs.cli._mount_table import MountState
from vconfs.device.binding import (
    PciFunction,
    candidates,
    is_isolated,
    is_unsafe_mode_on,
    unsafe_mode_advice,
)
from vconfs.system.huge_pages import HUGETLBFS, MOUNT_COMMAND, PAGES_COMMAND
from vconfs.system.mountinfo import parse_mounts

#: ok: it is there. optional: it is not there, and only some uses need it. missing: nothing works.
State = Literal["ok", "optional", "missing"]

#: The first kernel on which one descriptor can be read and written at once (FOPEN_STREAM).
_KERNEL_MIN: Final = (5, 1)
#: Where mount(8) looks for helpers.
_HELPERS: Final = ("sbin", "usr/sbin")
#: Where mount(8) and systemd look for programs.
_SYSTEM_PATH: Final = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
#: The package that pip builds here, and what its build needs of Debian.
_BUILT: Final = "pyfuse3"
_BUILD_PACKAGES: Final = "gcc pkg-config libfuse3-dev python3-dev"
#: The device number of /dev/fuse.
_FUSE: Final = os.makedev(10, 229)


@frozen
class Finding:
    """The result of one check, and what to do about it."""

    check: str
    state: State
    message: str
    advice: str = ""


@frozen
class Machine:
    """The machine to check."""

    root: Path = Path("/")
    uid: int = field(factory=os.getuid)
    kernel: str = field(factory=lambda: os.uname().release)
    #: Returns True if we may read and write a file.
    can_use: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK)
    find_program: Callable[[str], str | None] = shutil.which
    #: Our own program.
    program: Path = field(factory=lambda: own_program(sys.argv[0]))
    mounts: Mapping[Path, MountState] = field(factory=dict)


def own_program(called: str) -> Path:
    """Return the path of our program: with `python -m vconfs`, where pip puts it."""
    path = Path(called).absolute()
    return Path(sys.executable).parent / "vconfs" if path.name == "__main__.py" else path


def examine(machine: Machine) -> Iterator[Finding]:
    """Make all checks, the essential ones first."""
    yield _kernel(machine)
    yield _fuse_device(machine)
    yield _fusermount(machine)
    yield from python_packages(metadata.requires("vconfs") or [], _installed, _load_error)
    yield _mount_command(machine)
    yield _allow_other(machine)
    yield _system_log(machine)
    yield from _iommu(machine)
    yield _vfio(machine)
    yield from _pci_consoles(machine)
    yield _kernel_ports(machine)
    yield _vsock(machine)
    yield from _mounts(machine)


def _kernel(machine: Machine) -> Finding:
    found = re.match(r"(\d+)\.(\d+)", machine.kernel)
    if found and (int(found[1]), int(found[2])) >= _KERNEL_MIN:
        return Finding("kernel", "ok", f"Linux {machine.kernel}")
    advice = f"a kernel from Linux {'.'.join(map(str, _KERNEL_MIN))} on"
    return Finding("kernel", "missing", f"Linux {machine.kernel} is too old", advice)


def _fuse_device(machine: Machine) -> Finding:
    name, path = "fuse-device", machine.root / "dev/fuse"
    if not path.exists():
        advice = "modprobe fuse; a container must be given the device"
        return Finding(name, "missing", "there is no /dev/fuse", advice)
    if path.stat().st_rdev != _FUSE:
        advice = "as root: rm /dev/fuse; mknod -m 666 /dev/fuse c 10 229"
        return Finding(name, "missing", "/dev/fuse is not the FUSE device", advice)
    if not machine.can_use(path):
        advice = "as root: chmod 666 /dev/fuse"
        return Finding(name, "missing", "no permission to use /dev/fuse", advice)
    return Finding(name, "ok", "/dev/fuse can be used")


def _fusermount(machine: Machine) -> Finding:
    """Check for the mount helper: root needs none, others need one that becomes root."""
    name = "fusermount3"
    needed: State = "optional" if machine.uid == 0 else "missing"
    program = machine.find_program("fusermount3")
    if program is None:
        text = "there is no fusermount3: only root can mount"
        return Finding(name, needed, text, "apt-get install fuse3")
    status = os.stat(program)
    if not status.st_mode & stat.S_ISUID or status.st_uid != 0:
        text = f"{program} is not set-uid root: only root can mount"
        return Finding(name, needed, text, f"as root: chown root {program}; chmod u+s {program}")
    return Finding(name, "ok", f"{program} lets users mount")


def python_packages(
    requirements: Sequence[str],
    installed: Callable[[str], str | None],
    load_error: Callable[[], str | None],
) -> Iterator[Finding]:
    """Compare the requirements of our package with the installed versions."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        advice = f"pip install '{requirement}'"
        if requirement.name == _BUILT:
            advice = f"apt-get install {_BUILD_PACKAGES}; {advice}"
        if version is None:
            text = f"{requirement.name} is not installed"
            yield Finding("python-package", "missing", text, advice)
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version} is not {requirement.specifier}"
            yield Finding("python-package", "missing", text, advice)
        elif requirement.name == _BUILT and (error := load_error()) is not None:
            text = f"{requirement.name} {version} cannot be loaded: {error}"
            again = f"pip install --force-reinstall --no-cache-dir '{requirement}'"
            advice = f"apt-get install {_BUILD_PACKAGES}; {again}"
            yield Finding("python-package", "missing", text, advice)
        else:
            yield Finding("python-package", "ok", f"{requirement.name} {version}")


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _load_error() -> str | None:
    """Return why the package that was built here cannot be loaded; None if it can."""
    try:
        importlib.import_module(_BUILT)
    except ImportError as error:
        return str(error)
    return None


def _mount_command(machine: Machine) -> Finding:
    """Check for what mount(8) calls: our own helper, which the Debian package has, or mount.fuse.

    The latter calls the program in the type's name.
    """
    name = "mount-command"
    if any((machine.root / folder / "mount.fuse.vconfs").exists() for folder in _HELPERS):
        return Finding(name, "ok", "mount -t fuse.vconfs and fstab find mount.fuse.vconfs")
    for program, advice in (
        ("mount.fuse", "apt-get install fuse3"),
        ("vconfs", f"as root: ln -s {machine.program} /usr/local/bin/vconfs"),
    ):
        if not any((machine.root / folder / program).exists() for folder in _SYSTEM_PATH):
            text = f"mount -t fuse.vconfs, fstab and units do not find {program}"
            return Finding(name, "optional", text, advice)
    return Finding(name, "ok", "mount -t fuse.vconfs, fstab and units find vconfs")


def _allow_other(machine: Machine) -> Finding:
    name, path = "allow-other", machine.root / "etc/fuse.conf"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if any(line.strip() == "user_allow_other" for line in lines):
        return Finding(name, "ok", "users may let others use their mounts (-o allow_other)")
    text = "only root may let others use a mount (-o allow_other)"
    return Finding(name, "optional", text, "as root: echo user_allow_other >>/etc/fuse.conf")


def _system_log(machine: Machine) -> Finding:
    if (machine.root / "dev/log").exists():
        return Finding("log", "ok", "mounts in the background log to the system's log")
    text = "there is no /dev/log: mounts in the background have no log"
    return Finding("log", "optional", text, "vconfs mount --log FILE, or a syslogd")


def _iommu(machine: Machine) -> Iterator[Finding]:
    name, sysfs = "iommu", machine.root / "sys"
    groups = sysfs / "kernel/iommu_groups"
    count = sum(map(is_isolated, groups.iterdir())) if groups.exists() else 0
    if count:
        yield Finding(name, "ok", f"an IOMMU with {count} groups")
        return
    if is_unsafe_mode_on(sysfs):
        yield Finding(name, "ok", "there is no IOMMU, and VFIO does without (docs/security.md)")
    else:
        text = "there is no IOMMU: --device pci: needs one, or VFIO's no-IOMMU mode"
        advice = "boot with intel_iommu=on or amd_iommu=on, give the virtual machine one, or allow"
        advice += f" VFIO to do without (docs/security.md); {unsafe_mode_advice(sysfs)}"
        yield Finding(name, "optional", text, advice)
    yield _huge_pages(machine)


def _huge_pages(machine: Machine) -> Finding:
    """Check for the memory that a device without an IOMMU needs."""
    name = "huge-pages"
    counts = (machine.root / "sys/kernel/mm/hugepages").glob("*/nr_hugepages")
    count = sum(int(path.read_text()) for path in counts)
    if not count:
        text = "there are no huge pages: --device pci: needs them where there is no IOMMU"
        return Finding(name, "optional", text, f"as root: {PAGES_COMMAND}")
    mounts = machine.root / "proc/self/mountinfo"
    if not any(mount.type == HUGETLBFS for mount in parse_mounts(mounts.read_bytes())):
        text = "no hugetlbfs is mounted: --device pci: needs it where there is no IOMMU"
        return Finding(name, "optional", text, f"as root: {MOUNT_COMMAND}")
    return Finding(name, "ok", f"{count} huge pages")


def _vfio(machine: Machine) -> Finding:
    driver = machine.root / "sys/bus/pci/drivers/vfio-pci"
    if not driver.exists():
        text = "there is no VFIO driver: --device pci: needs it"
        return Finding("vfio", "optional", text, "modprobe vfio-pci")
    if not machine.can_use(machine.root / "dev/vfio/vfio"):
        text = "no permission to use /dev/vfio/vfio"
        return Finding("vfio", "optional", text, "as root: chmod 666 /dev/vfio/vfio")
    return Finding("vfio", "ok", "VFIO can be used")


def _pci_consoles(machine: Machine) -> Iterator[Finding]:
    name, sysfs = "pci-console", machine.root / "sys"
    consoles = candidates(sysfs)
    for address in consoles:
        driver = PciFunction(address, sysfs).driver
        if driver == "vfio-pci":
            yield Finding(name, "ok", f"{address} can be used with --device pci:{address}")
        else:
            having = f"with the driver {driver}" if driver else "without a driver"
            text = f"{address} is a virtio console {having}"
            yield Finding(name, "optional", text, f"vconfs bind {address}")
    if not consoles:
        yield Finding(name, "optional", "this machine has no virtio console on PCI")


def _kernel_ports(machine: Machine) -> Finding:
    ports = machine.root / "sys/class/virtio-ports"
    count = len(list(ports.iterdir())) if ports.exists() else 0
    if count:
        return Finding("kernel-ports", "ok", f"{count} ports can be used with --device kernel")
    text = "the kernel's own driver has no ports: --device kernel needs them"
    return Finding("kernel-ports", "optional", text, "modprobe virtio_console, in a guest")


def _vsock(machine: Machine) -> Finding:
    if (machine.root / "dev/vsock").exists():
        return Finding("vsock", "ok", "streams over vsock work")
    text = "there is no /dev/vsock: streams over vsock need it"
    return Finding("vsock", "optional", text, "modprobe vhost_vsock on a host, vsock in a guest")


def _mounts(machine: Machine) -> Iterator[Finding]:
    for mountpoint, state in machine.mounts.items():
        if state is MountState.ALIVE:
            yield Finding("mount", "ok", f"{mountpoint} is mounted")
        elif state is MountState.FOREIGN:
            yield Finding("mount", "ok", f"{mountpoint} is mounted by another user, for that user")
        else:
            text = f"the mount {mountpoint}: {state.value}"
            yield Finding("mount", "optional", text, f"vconfs umount {mountpoint}")

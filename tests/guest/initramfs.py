"""The guest's first file system: busybox, the modules with all that they need, and `init`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

MODULES = (
    *("virtio_pci", "virtio_mmio", "9p", "9pnet_virtio", "overlay", "fuse"),
    *("vfio_pci", "vfio_iommu_type1", "virtio_console"),
)
FOLDERS = ("bin", "dev", "proc", "sys", "lower", "upper", "new", "modules")
PROGRAMS = ("sh", "mount", "insmod", "mkdir", "poweroff", "chroot", "tr", "sed", "dd", "sleep")

_FOLDER, _FILE, _LINK, _DEVICE = 0o040755, 0o100755, 0o120777, 0o020600


class Archive:
    """A cpio archive of the kind that the kernel unpacks ("newc")."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._count = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._count += 1
        path = name.encode() + b"\0"
        fields = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        self.data += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._pad()
        self.data += data
        self._pad()

    def _pad(self) -> None:
        self.data += bytes(-len(self.data) % 4)


def build(
    kernel: Path,
    init: Path,
    others: Iterable[Path] = (),
    *,
    wanted: Iterable[str] = MODULES,
    programs: Iterable[Path] = (),
) -> bytes:
    """Make the archive from a folder that scripts/guest-kernel has filled.

    It has the `wanted` modules, and `programs` beside busybox. Modules in the `others` replace
    those of the kernel.
    """
    archive = Archive()
    for folder in FOLDERS:
        archive.add(folder, _FOLDER)
    archive.add("dev/console", _DEVICE, device=(5, 1))
    for path in (Path("/bin/busybox"), *programs):
        _add_program(archive, path)
    for program in PROGRAMS:
        archive.add(f"bin/{program}", _LINK, b"busybox")
    modules = in_loading_order([kernel, *others], wanted)
    for name, path in modules.items():
        archive.add(f"modules/{name}.ko", _FILE, path.read_bytes())
    archive.add("modules/list", _FILE, "".join(f"{name}\n" for name in modules).encode())
    archive.add("init", _FILE, init.read_bytes())
    archive.add("TRAILER!!!", 0)
    return bytes(archive.data)


def _add_program(archive: Archive, program: Path) -> None:
    """Add a program and the libraries that it is linked to."""
    archive.add(f"bin/{program.name}", _FILE, program.read_bytes())
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    folders = set(FOLDERS)
    for library in re.findall(r"(/\S+) \(0x", linked):
        path = Path(library)
        for folder in reversed([str(parent)[1:] for parent in path.parents][:-1]):
            if folder not in folders:
                folders.add(folder)
                archive.add(folder, _FOLDER)
        archive.add(library[1:], _FILE, path.read_bytes())


def in_loading_order(folders: Iterable[Path], wanted: Iterable[str]) -> dict[str, Path]:
    """Return modules and their dependencies, each after those that it needs.

    Of modules with the same name, that of the last folder is used.
    """
    modules = [path for folder in folders for path in folder.rglob("*.ko")]
    paths = {path.stem.replace("-", "_"): path for path in modules}
    order: dict[str, Path] = {}

    def need(name: str) -> None:
        if name in order or name not in paths:  # built into the kernel
            return
        found = re.search(rb"\0depends=([^\0]*)\0", paths[name].read_bytes())
        for other in found[1].decode().split(",") if found else ():
            need(other.replace("-", "_"))
        order[name] = paths[name]

    for name in wanted:
        need(name)
    return order

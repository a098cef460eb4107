"""Peers that serve files: vconfs, in one or two processes, and a device of C libfuse."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from benchmarks._tables import Ratio
from benchmarks.many_ports import EMBEDDED, host
from benchmarks.measure import build, serving
from benchmarks.ports import VCONFS
from benchmarks.two_processes import DEVICES

LIBFUSE: Final = "C libfuse"
#: Those with a mount.
MOUNTS: Final = (LIBFUSE, EMBEDDED, *DEVICES)
#: Each of ours beside libfuse.
BESIDE_LIBFUSE: Final = [Ratio(name, LIBFUSE) for name in (EMBEDDED, *DEVICES)]
SPECS: Final = ("--port=zero=zero", "--port=null=null", "--port=echo=echo")


@frozen
class Served:
    """The files that a peer serves, and its processes."""

    folder: Path
    pids: list[int]

    @property
    def zero(self) -> Path:
        """A file to read without an end."""
        port = self.folder / "zero"
        return port if port.exists() else self.folder / "null"


@contextmanager
def prepared() -> Iterator[tuple[Path, Path]]:
    """Yield a folder with the compiled programs and a mountpoint, and the client of them."""
    with tempfile.TemporaryDirectory(prefix="vconfs-bench-") as folder:
        place = Path(folder)
        build("null_libfuse.c", place, "fuse3")
        (place / "mnt").mkdir()
        yield place, build("client.c", place)


def serve(name: str, place: Path, specs: Sequence[str] = SPECS) -> AbstractContextManager[Served]:
    """Run one of MOUNTS while the block runs."""
    return _libfuse(place) if name == LIBFUSE else _vconfs(name, place, specs)


@contextmanager
def _libfuse(place: Path) -> Iterator[Served]:
    mountpoint = place / "mnt"
    with serving([str(place / "null_libfuse"), str(mountpoint)], mountpoint) as server:
        yield Served(mountpoint, [server.pid])


@contextmanager
def _vconfs(name: str, place: Path, specs: Sequence[str]) -> Iterator[Served]:
    mountpoint = place / "mnt"
    with host(name, place, specs) as (device, hosts):
        subprocess.run([*VCONFS, "mount", *device, str(mountpoint)], check=True)
        try:
            guest = int(os.getxattr(mountpoint, "user.pid"))
            yield Served(mountpoint / "by-name", [guest, *hosts])
        finally:
            subprocess.run([*VCONFS, "umount", str(mountpoint)], check=True)

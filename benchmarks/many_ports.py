"""511 ports on one device: the time to mount them, and the memory of each.

The mount should take less than 5 s, `ls` less than 1 s, and each idle port less than 100 KiB of
memory in each process. Each port is joined to a unix socket of its own.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks._processes import resident
from benchmarks.ports import VCONFS
from benchmarks.two_processes import DEVICES, running

COUNT = 511
EMBEDDED = "embedded"


def main() -> None:
    print(f"{'':12}{'mount':>10}{'ls':>10}{'ls -l':>10}{'KiB/port, guest':>18}{'host':>8}")
    with tempfile.TemporaryDirectory(prefix="vconfs-bench-") as folder:
        place = Path(folder)
        (place / "mnt").mkdir()
        for name in (EMBEDDED, *DEVICES):
            base, _ = measure(place, name, 1)
            memory, seconds = measure(place, name, COUNT)
            cost = [(many - few) / (COUNT - 1) for many, few in zip(memory, base, strict=True)]
            cells = [f"{value:9.2f}s" for value in seconds]
            cells += [f"{value:{width}.1f}" for value, width in zip(cost, (18, 8), strict=False)]
            print(f"{name:12}" + "".join(cells))


def measure(place: Path, name: str, count: int) -> tuple[list[int], list[float]]:
    """Return the memory of each process in KiB, and the times of mount, ls and ls -l."""
    specs = [f"--port=p{port_id}=unix:{place}/{port_id}" for port_id in range(count)]
    mountpoint = place / "mnt"
    with host(name, place, specs) as (device, hosts):
        seconds = [timed([*VCONFS, "mount", *device, str(mountpoint)])]
        try:
            seconds += [timed(["ls", str(mountpoint)]), timed(["ls", "-l", str(mountpoint)])]
            guest = int(os.getxattr(mountpoint, "user.pid"))
            return [resident(pid) for pid in (guest, *hosts)], seconds
        finally:
            subprocess.run([*VCONFS, "umount", str(mountpoint)], check=True)


@contextmanager
def host(name: str, place: Path, specs: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    """Yield the arguments for a mount, and the processes beside it."""
    if name == EMBEDDED:
        yield list(specs), []
        return
    url = DEVICES[name].format(place / "device")
    with running([*VCONFS, "host", "--listen", url, *specs]) as process:
        assert process.stderr is not None
        process.stderr.readline()  # that it listens
        yield ["--device", url], [process.pid]


def timed(command: Sequence[str]) -> float:
    begun = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun

"""The time of mount, `vconfs ls` and umount by the number of ports.

The peers are a device of C libfuse with one file, and Python that only imports what vconfs is made
of. A port is joined to a unix socket.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks._peers import LIBFUSE, prepared
from benchmarks._tables import Ratio, Table, shown
from benchmarks.costs import REPETITIONS
from benchmarks.many_ports import EMBEDDED, host, timed
from benchmarks.ports import VCONFS

COUNTS: Final = (1, 64, 511)
OURS: Final = (EMBEDDED, "vhost-user")
PYTHON: Final = "Python"
STEPS: Final = ("mount", "vconfs ls", "umount")
IMPORTS: Final = "import attrs, click, rich, trio"


def main() -> list[Table]:
    ratios = [Ratio(name, PYTHON) for name in OURS]
    tables = {step: Table(f"Time of {step}", "s", "ports", ratios) for step in STEPS}
    with prepared() as (place, _):
        for _ in range(REPETITIONS):
            for count in COUNTS:
                for table in tables.values():
                    table.add(count, PYTHON, timed([sys.executable, "-c", IMPORTS]))
                for step, seconds in measure_libfuse(place).items():
                    tables[step].add(count, LIBFUSE, seconds)
                for name in OURS:
                    for step, seconds in measure(name, place, count).items():
                        tables[step].add(count, name, seconds)
    return shown(tables.values())


def measure(name: str, place: Path, count: int) -> dict[str, float]:
    """Return the seconds of each step with this many ports."""
    specs = [f"--port=p{port_id}=unix:{place}/{port_id}" for port_id in range(count)]
    mountpoint = str(place / "mnt")
    with host(name, place, specs) as (device, _):
        mount = timed([*VCONFS, "mount", *device, mountpoint])
        try:
            ls = timed([*VCONFS, "ls", mountpoint])
        finally:
            umount = timed([*VCONFS, "umount", mountpoint])
    return dict(zip(STEPS, (mount, ls, umount), strict=True))


def measure_libfuse(place: Path) -> dict[str, float]:
    """Return the seconds of mount and umount."""
    mountpoint = str(place / "mnt")
    begun = time.monotonic()
    with subprocess.Popen(
        [str(place / "null_libfuse"), mountpoint], stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()  # that it is ready
        mount = time.monotonic() - begun
        begun = time.monotonic()
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)
        server.wait()
        umount = time.monotonic() - begun
    return {"mount": mount, "umount": umount}

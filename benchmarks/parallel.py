"""Many ports that are written to at once: what they move in all, and the slowest port's share.

A share of 1 is the mean of all. The peers are a device of C libfuse that discards, and a socat for
each port, which discards as well. Two CPUs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks._peers import BESIDE_LIBFUSE, MOUNTS, prepared, serve
from benchmarks._tables import Ratio, Table, shown
from benchmarks.costs import REPETITIONS
from benchmarks.measure import cpus
from benchmarks.two_processes import DEVICES, SOCAT, running, wait_for

COUNTS: Final = (1, 8, 64)
RATIOS: Final = [*BESIDE_LIBFUSE, *(Ratio(name, SOCAT) for name in DEVICES)]
_SIZE: Final = str(128 << 10)
_SECONDS: Final = "1"


def main() -> list[Table]:
    total = Table("Written to all ports at once, 2 CPUs", "MB/s", "ports", RATIOS)
    slowest = Table("The slowest port, 2 CPUs", "of the mean", "ports", RATIOS)
    with prepared() as (place, client), cpus(2):
        for _ in range(REPETITIONS):
            for peer in (*MOUNTS, SOCAT):
                with files(peer, place) as paths:
                    for count in COUNTS:
                        rates = write_at_once(client, paths[:count])
                        total.add(count, peer, sum(rates) / 1e6)
                        slowest.add(count, peer, min(rates) / sum(rates) * count)
    return shown([total, slowest])


@contextmanager
def files(peer: str, place: Path) -> Iterator[list[Path]]:
    """Yield what the clients of a peer write to, as many as the most of COUNTS."""
    count = COUNTS[-1]
    if peer == SOCAT:
        source = place / "source"
        listener = f"UNIX-LISTEN:{source},fork,unlink-early,backlog={count}"
        with running(["socat", "-u", "-b", _SIZE, listener, "OPEN:/dev/null"]):
            wait_for(source)
            yield [source] * count
        return
    names = [f"null{number}" for number in range(count)]
    with serve(peer, place, [f"--port={name}=null" for name in names]) as served:
        yield [served.folder / name for name in names]


def write_at_once(client: Path, paths: list[Path]) -> list[float]:
    """Return the bytes per second of clients that write at the same time."""
    writers = [
        subprocess.Popen(
            [str(client), "write", str(path), _SIZE, _SECONDS], stdout=subprocess.PIPE, text=True
        )
        for path in paths
    ]
    return [float(writer.communicate()[0]) for writer in writers]

"""What the bytes of a port cost: CPU time and context switches of the daemons, by size of block.

All on one CPU, and on two. The path in one process is compared with a device of C libfuse that does
nothing, the one in two processes with socat, which joins two sockets: it reads and writes in
one, so that its figures are the same for both. A message is a block.
"""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Final

from benchmarks._peers import LIBFUSE, MOUNTS, Served, prepared, serve
from benchmarks._processes import Cost, spent
from benchmarks._tables import Ratio, Table, shown
from benchmarks.many_ports import EMBEDDED
from benchmarks.measure import ask, cpus
from benchmarks.two_processes import DEVICES, SOCAT, through_socat

REPETITIONS: Final = int(os.environ.get("BENCH_REPETITIONS", "3"))
SECONDS: Final = "0.3"
BLOCKS: Final = (64, 4096, 128 << 10, 1 << 20)
DIRECTIONS: Final = ("write", "read")
RATIOS: Final = [Ratio(EMBEDDED, LIBFUSE), *(Ratio(name, SOCAT) for name in DEVICES)]
_GIB: Final = 1 << 30


class Costs:
    """The tables of one direction on some CPUs."""

    def __init__(self, direction: str, count: int) -> None:
        on = f"{direction}, {count} CPU{'s' * (count > 1)}"
        self.rate = _table(f"Throughput of {on}", "MB/s")
        self.per_gib = _table(f"CPU time of {on}", "s/GiB")
        self.per_message = _table(f"CPU time of {on}", "us/message")
        self.switches = _table(f"Context switches of {on}", "per message")

    @property
    def tables(self) -> list[Table]:
        return [self.rate, self.per_gib, self.per_message, self.switches]

    def add(self, block: int, peer: str, rate: float, cost: Cost) -> None:
        """Add a run of SECONDS with this many bytes per second."""
        size = rate * float(SECONDS)
        self.rate.add(block, peer, rate / 1e6)
        self.per_gib.add(block, peer, cost.seconds / size * _GIB)
        self.per_message.add(block, peer, cost.seconds / size * block * 1e6)
        self.switches.add(block, peer, cost.switches / size * block)


def _table(title: str, unit: str) -> Table:
    return Table(title, unit, "bytes per block", RATIOS)


def main() -> list[Table]:
    tables: list[Table] = []
    with prepared() as (place, client):
        for count in (1, 2):
            costs = {direction: Costs(direction, count) for direction in DIRECTIONS}
            with cpus(count):
                for _ in range(REPETITIONS):
                    for peer in MOUNTS:
                        with serve(peer, place) as served:
                            for direction, block in product(DIRECTIONS, BLOCKS):
                                run = measure(client, direction, served, block)
                                costs[direction].add(block, peer, *run)
                    for block in BLOCKS:
                        run = measure_socat(client, place, block)
                        for direction in DIRECTIONS:
                            costs[direction].add(block, SOCAT, *run)
            tables += shown(table for both in costs.values() for table in both.tables)
    return tables


def measure(client: Path, direction: str, served: Served, block: int) -> tuple[float, Cost]:
    """Return the bytes per second of a run, and what it cost the peer."""
    file = served.zero if direction == "read" else served.folder / "null"
    before = spent(served.pids)
    (rate,) = ask(str(client), direction, str(file), str(block), SECONDS)
    return rate, spent(served.pids) - before


def measure_socat(client: Path, place: Path, block: int) -> tuple[float, Cost]:
    """Return the same of socat, which reads and writes in one."""
    with through_socat(client, place, block) as (socat, writer):
        before = spent([socat.pid])
        (rate,) = map(float, writer.communicate()[0].split())
        return rate, spent([socat.pid]) - before

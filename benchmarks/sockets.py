"""A port that is joined to a client of a unix socket, beside socat between two sockets.

This is the way that most programs use: one opens the file of the port, the other connects to its
socket. Both ways, by size of block, all on one CPU and on two. socat reads and writes in one, so
that its figures are the same for both.
"""

from __future__ import annotations

import os
import time
from itertools import product
from pathlib import Path
from typing import Final

from benchmarks._peers import prepared, serve
from benchmarks._tables import Ratio, Table, shown
from benchmarks.costs import BLOCKS, DIRECTIONS, REPETITIONS, SECONDS
from benchmarks.many_ports import EMBEDDED
from benchmarks.measure import ask, cpus
from benchmarks.two_processes import DEVICES, SOCAT, running, socat_rate

OURS: Final = (EMBEDDED, *DEVICES)
#: What the client of the socket does, while the other one uses the file.
_OPPOSITE: Final = {"write": "read", "read": "write"}
_RUNS: Final = list(product(DIRECTIONS, BLOCKS))
_LONGEST: Final = "60"


def main() -> list[Table]:
    tables: list[Table] = []
    with prepared() as (place, client):
        for count in (1, 2):
            rates = {direction: _table(direction, count) for direction in DIRECTIONS}
            with cpus(count):
                for _ in range(REPETITIONS):
                    for peer in OURS:
                        _measure_port(client, place, peer, rates)
                    for block in BLOCKS:
                        rate = socat_rate(client, place, block)
                        for table in rates.values():
                            table.add(block, SOCAT, rate / 1e6)
            tables += shown(rates.values())
    return tables


def _table(direction: str, count: int) -> Table:
    what = {"write": "From a port to a socket", "read": "From a socket to a port"}[direction]
    title = f"{what}, {count} CPU{'s' * (count > 1)}"
    return Table(title, "MB/s", "bytes per block", [Ratio(name, SOCAT) for name in OURS])


def _measure_port(client: Path, place: Path, peer: str, rates: dict[str, Table]) -> None:
    # Each run has a port of its own: unread data of the one before would come first.
    runs = {f"{direction}{block}": (direction, block) for direction, block in _RUNS}
    specs = [f"--port={name}=unix:{place / name}" for name in runs]
    with serve(peer, place, specs) as served:
        for name, (direction, block) in runs.items():
            file, sock = served.folder / name, place / name
            with running([str(client), _OPPOSITE[direction], str(sock), str(block), _LONGEST]):
                while os.getxattr(file, "user.host") != b"1":
                    time.sleep(0.01)
                (rate,) = ask(str(client), direction, str(file), str(block), SECONDS)
            rates[direction].add(block, peer, rate / 1e6)

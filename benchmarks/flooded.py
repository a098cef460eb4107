"""An echo port's latency while other ports of the same device are flooded: median and p99.

The peer is a device of C libfuse that echoes and discards in one thread. One CPU.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks._peers import BESIDE_LIBFUSE, MOUNTS, Served, prepared, serve
from benchmarks._tables import Table, shown
from benchmarks.costs import REPETITIONS
from benchmarks.measure import ask, one_cpu
from benchmarks.two_processes import running

COUNTS: Final = (0, 1, 8)
_SPECS: Final = ("--port=echo=echo", *(f"--port=null{number}=null" for number in range(COUNTS[-1])))
_SIZE: Final = str(64 << 10)
_ROUNDS: Final = "300"
_LONGEST: Final = "60"


def main() -> list[Table]:
    work = "flooded ports"
    middle = Table("Echo of a byte beside floods, median, 1 CPU", "us", work, BESIDE_LIBFUSE)
    late = Table("Echo of a byte beside floods, p99, 1 CPU", "us", work, BESIDE_LIBFUSE)
    with prepared() as (place, client), one_cpu():
        for _ in range(REPETITIONS):
            for peer in MOUNTS:
                with serve(peer, place, _SPECS) as served:
                    for count in COUNTS:
                        pong = ping_pong(client, served, count)
                        for table, value in zip((middle, late), pong, strict=True):
                            table.add(count, peer, value)
    return shown([middle, late])


def ping_pong(client: Path, served: Served, floods: int) -> list[float]:
    """Return the median and the 99th percentile, in microseconds."""
    with ExitStack() as stack:
        for number in range(floods):
            file = served.folder / f"null{number}"
            stack.enter_context(running([str(client), "write", str(file), _SIZE, _LONGEST]))
        return ask(str(client), "pingpong", str(served.folder / "echo"), _ROUNDS)

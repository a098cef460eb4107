"""The memory of data that waits for a host, by its amount and by the size of the writes.

It is that of all daemons, without what they share with each other. The peer is a deque in Python,
with one bytearray for each write.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from benchmarks._peers import prepared, serve
from benchmarks._processes import own_memory
from benchmarks._tables import Ratio, Table, shown
from benchmarks.many_ports import EMBEDDED
from benchmarks.measure import ask
from benchmarks.two_processes import DEVICES

QUEUE: Final = "deque"
PEERS: Final = (QUEUE, EMBEDDED, *DEVICES)
RATIOS: Final = [Ratio(name, QUEUE) for name in (EMBEDDED, *DEVICES)]
SIZES: Final = (256, 4096, 128 << 10)
AMOUNTS: Final = (1, 4, 16)
_MIB: Final = 1 << 20
_USUAL_SIZE: Final = 4096
_USUAL_AMOUNT: Final = 4


def main() -> list[Table]:
    title, unit = "Memory of what is queued", "MiB per MiB"
    by_size = Table(f"{title}, {_USUAL_AMOUNT} MiB", unit, "bytes per write", RATIOS)
    by_amount = Table(f"{title}, {_USUAL_SIZE} bytes per write", unit, "MiB", RATIOS)
    with prepared() as (place, _):
        for peer in PEERS:
            for size in SIZES:
                by_size.add(size, peer, measure(peer, place, size, _USUAL_AMOUNT))
            for amount in AMOUNTS:
                by_amount.add(amount, peer, measure(peer, place, _USUAL_SIZE, amount))
    return shown([by_amount, by_size])


def measure(peer: str, place: Path, size: int, amount: int) -> float:
    """Return the memory per MiB of messages of a size."""
    count = amount * _MIB // size
    if peer == QUEUE:
        (grown,) = ask(sys.executable, "-m", "benchmarks._queue", str(size), str(count))
        return grown / 1024 / amount
    specs = [f"--port=queue=unix:{place}/queue,cache,host-limit={2 * amount}M"]
    with serve(peer, place, specs) as served:
        file = os.open(served.folder / "queue", os.O_WRONLY)
        try:
            os.write(file, b"warm")
            before = sum(map(own_memory, served.pids))
            for _ in range(count):
                os.write(file, bytes(size))
            return (sum(map(own_memory, served.pids)) - before) / 1024 / amount
        finally:
            os.close(file)

"""Our FUSE session compared with C libfuse and pyfuse3.main(), each with the same null device.

The peers run in turns, so that noise of the machine affects all of them. The ratios are those of
the medians. Our session should have at least three quarters of libfuse's throughput, and at most
1.6 of its ping-pong time.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks.measure import Samples, ask, build, one_cpu, report, serving

BLOCKS = {"4 KiB": 4096, "128 KiB": 128 << 10, "1 MiB": 1 << 20}
PEERS = ("libfuse", "session", "pyfuse3")
REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "5"))
SECONDS = "0.4"
ROUNDS = "5000"


def main() -> None:
    samples: Samples = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="vconfs-bench-") as folder, one_cpu():
        place = Path(folder)
        for program, packages in (("client.c", ()), ("null_libfuse.c", ("fuse3",))):
            build(program, place, *packages)
        (place / "mnt").mkdir()
        for _ in range(REPETITIONS):
            for peer in PEERS:
                measure(peer, place, samples)
    report(samples, PEERS, ("session", "libfuse"))


def server(peer: str, place: Path) -> list[str]:
    mountpoint = str(place / "mnt")
    if peer == "libfuse":
        return [str(place / "null_libfuse"), mountpoint]
    return [sys.executable, "-m", "benchmarks.null_fs", peer, mountpoint]


def measure(peer: str, place: Path, samples: Samples) -> None:
    client, mountpoint = str(place / "client"), place / "mnt"
    file, echo = str(mountpoint / "null"), str(mountpoint / "echo")
    with serving(server(peer, place), mountpoint):
        for name, size in BLOCKS.items():
            for direction in ("read", "write"):
                (rate,) = ask(client, direction, file, str(size), SECONDS)
                samples[f"{direction} {name}", peer].append(rate / 1e6)
        middle, late = ask(client, "pingpong", echo, ROUNDS)
        samples["ping-pong", peer].append(middle)
        samples["ping-pong p99", peer].append(late)

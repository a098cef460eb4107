"""The whole embedded path, from a mounted port to its chardev, and an empty pyfuse3 file system.

The port goes through the file system, the port, the v8 dialect, both sides of a ring, the host
end and a chardev (zero to read, null to write, echo to ping-pong); the peer does nothing
in pyfuse3.main(). Ours should have at least its throughput with blocks of 4 KiB and 128 KiB, and at
most its ping-pong time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fuse_session import BLOCKS, REPETITIONS, ROUNDS, SECONDS
from benchmarks.measure import Samples, ask, build, one_cpu, report, serving

PEERS = ("vconfs", "pyfuse3")
VCONFS = [sys.executable, "-m", "vconfs"]


def main() -> None:
    samples: Samples = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="vconfs-bench-") as folder, one_cpu():
        place = Path(folder)
        client = build("client.c", place)
        mountpoint = place / "mnt"
        mountpoint.mkdir()
        for _ in range(REPETITIONS):
            with ports(mountpoint):
                by_name = mountpoint / "by-name"
                move(client, "vconfs", by_name / "zero", by_name / "null", samples)
                ping_pong(client, "vconfs", by_name / "echo", samples)
            null_fs = [sys.executable, "-m", "benchmarks.null_fs", "pyfuse3", str(mountpoint)]
            with serving(null_fs, mountpoint):
                move(client, "pyfuse3", mountpoint / "null", mountpoint / "null", samples)
                ping_pong(client, "pyfuse3", mountpoint / "echo", samples)
    report(samples, PEERS, ("vconfs", "pyfuse3"))


@contextmanager
def ports(mountpoint: Path) -> Iterator[None]:
    specs = [f"--port={kind}={kind}" for kind in ("zero", "null", "echo")]
    subprocess.run([*VCONFS, "mount", *specs, str(mountpoint)], check=True)
    try:
        yield
    finally:
        subprocess.run([*VCONFS, "umount", str(mountpoint)], check=True)


def move(client: Path, peer: str, source: Path, sink: Path, samples: Samples) -> None:
    for name, size in BLOCKS.items():
        for direction, file in (("read", source), ("write", sink)):
            (rate,) = ask(str(client), direction, str(file), str(size), SECONDS)
            samples[f"{direction} {name}", peer].append(rate / 1e6)


def ping_pong(client: Path, peer: str, file: Path, samples: Samples) -> None:
    middle, late = ask(str(client), "pingpong", str(file), ROUNDS)
    samples["ping-pong", peer].append(middle)
    samples["ping-pong p99", peer].append(late)

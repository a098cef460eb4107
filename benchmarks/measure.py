"""Shared code of the benchmarks: compiled C programs, servers, and one CPU for all processes."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent

#: (measurement, peer) -> the results.
Samples = dict[tuple[str, str], list[float]]


def build(source: str, into: Path, *packages: str) -> Path:
    """Compile one of the C programs of this folder."""
    flags: list[str] = []
    if packages:
        command = ["pkg-config", "--cflags", "--libs", *packages]
        flags = shlex.split(subprocess.check_output(command, text=True))
    program = into / Path(source).stem
    subprocess.run(["cc", "-O2", "-o", str(program), str(HERE / source), *flags], check=True)
    return program


@contextmanager
def one_cpu() -> Iterator[None]:
    """Keep this process and its children on one CPU: less noise, and no hidden parallel work."""
    with cpus(1):
        yield


@contextmanager
def cpus(count: int) -> Iterator[None]:
    """Keep this process and its children on this many CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def serving(command: Sequence[str], mountpoint: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a server that prints "ready" when it has mounted; unmount at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if server.stdout.readline().strip() != "ready":
                raise RuntimeError(f"{shlex.join(command)} did not start")
            yield server
        finally:
            subprocess.run(["umount", "-l", str(mountpoint)], check=False)
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                server.kill()


def ask(*command: str) -> list[float]:
    """Run a program that prints numbers."""
    return [float(word) for word in subprocess.check_output(command, text=True).split()]


def report(samples: Samples, peers: Sequence[str], *ratios: tuple[str, str]) -> None:
    """Print the medians of the peers, and the ratios of some pairs."""
    heads = [f"{ours}/{other}" for ours, other in ratios]
    widths = [max(18, len(head) + 2) for head in heads]
    print(
        f"{'':16}"
        + "".join(f"{peer:>22}" for peer in peers)
        + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))
    )
    for row in dict.fromkeys(row for row, _ in samples):
        unit = "us" if row.startswith("ping") else "MB/s"
        cells = [
            f"{median(samples[row, peer]):9.1f} {unit:4} ±{_spread(samples[row, peer]):3.0f}%"
            for peer in peers
        ]
        line = f"{row:16}" + "".join(f"{cell:>22}" for cell in cells)
        for (ours, other), width in zip(ratios, widths, strict=True):
            ratio = median(samples[row, ours]) / median(samples[row, other])
            line += f"{ratio:{width}.2f}"
        print(line)


def _spread(values: list[float]) -> float:
    return 50 * (max(values) - min(values)) / median(values)

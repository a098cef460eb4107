"""What benchmarks share: C programs built on the spot, servers that end, and one CPU for all."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


def build(source: str, into: Path, *packages: str) -> Path:
    """Compile one of the C programs that lie here."""
    flags: list[str] = []
    if packages:
        command = ["pkg-config", "--cflags", "--libs", *packages]
        flags = shlex.split(subprocess.check_output(command, text=True))
    program = into / Path(source).stem
    subprocess.run(["cc", "-O2", "-o", str(program), str(HERE / source), *flags], check=True)
    return program


@contextmanager
def one_cpu() -> Iterator[None]:
    """Keep this process and those that it starts on one CPU: less noise, and no free ride."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def serving(command: Sequence[str], mountpoint: Path) -> Iterator[None]:
    """Run a server that says "ready" when it has mounted; unmount at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if server.stdout.readline().strip() != "ready":
                raise RuntimeError(f"{shlex.join(command)} did not start")
            yield
        finally:
            subprocess.run(["umount", "-l", str(mountpoint)], check=False)
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                server.kill()


def ask(*command: str) -> list[float]:
    """Run a program that prints numbers."""
    return [float(word) for word in subprocess.check_output(command, text=True).split()]

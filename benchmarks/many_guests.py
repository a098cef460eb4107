"""Many guests on one host end: memory, time to connect, and an echo while all others flood.

200 guests with 4 ports each over unix streams, and 50 over vhost-user, are played by other
processes. An idle guest should take less than 300 KiB of the host end's own memory, all should be
connected in less than 5 s, and an echo of one guest should take less than 5 ms (median) while all
others send without a pause. At the end the host end should have as many descriptors as before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from benchmarks import _guests
from benchmarks._processes import own_memory
from benchmarks.ports import VCONFS
from benchmarks.two_processes import running
from vconfs.cli._control_client import ask
from vconfs.protocol.control import GuestList, GuestRemove

COUNTS: Final = {"stream:unix": 200, "vhost-user": 50}
_PORTS: Final = ("echo=echo", "null=null", "agent=unix:{}/%g/agent", "log=unix:{}/%g/log")
_ECHOES: Final = 300
_HEADS: Final = ("up", "KiB/guest", "echo", "p99", "in a flood", "p99", "MB/s", "descriptors")


class Player:
    """A process that plays guests."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hear(self) -> list[str]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the guests have ended")
        return line.split()

    def ask(self, command: str) -> list[str]:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self.hear()


def main() -> None:
    print(f"{'':12}" + "".join(f"{head:>13}" for head in _HEADS))
    for kind, count in COUNTS.items():
        with tempfile.TemporaryDirectory(prefix="vconfs-bench-") as folder:
            print(f"{kind:12}" + "".join(f"{cell:>13}" for cell in measure(kind, count, folder)))


def measure(kind: str, count: int, folder: str) -> list[str]:
    """Return the cells of a host end with this many guests."""
    place = Path(folder)
    urls = (
        [f"--listen={_guests.url(kind, place, number)}" for number in range(count)]
        if kind == "vhost-user"
        else [f"--listen={kind}:{place}/any,guest=*"]
    )
    ports = [f"--port={port.format(place)}" for port in _PORTS]
    control = place / "ctl"
    with running([*VCONFS, "host", *urls, *ports, "--control", str(control)]) as host:
        assert host.stderr is not None
        for _ in urls[:11]:  # of the rest, there is one line
            host.stderr.readline()
        with playing(kind, place, 0, 1) as one:
            before, base = descriptors(host.pid), own_memory(host.pid)
            known = {guest["name"] for guest in ask(control, GuestList())}
            calm = [float(word) * 1000 for word in one.ask(f"echo {_ECHOES}")]
            begun = time.monotonic()
            with playing(kind, place, 1, count - 1) as crowd:
                seconds = time.monotonic() - begun
                each = (own_memory(host.pid) - base) / (count - 1)
                crowd.ask("flood")
                time.sleep(1)
                begun, sent = time.monotonic(), int(crowd.ask("sent")[0])
                busy = [float(word) * 1000 for word in one.ask(f"echo {_ECHOES}")]
                rate = (int(crowd.ask("sent")[0]) - sent) / (time.monotonic() - begun) / 1e6
            for guest in ask(control, GuestList()):
                if guest["name"] not in known:
                    ask(control, GuestRemove(guest["name"]))
        left = descriptors(host.pid) - before
    return [
        f"{seconds:.1f} s",
        f"{each:.0f}",
        *(f"{figure:.1f} ms" for figure in (median(calm), p99(calm), median(busy), p99(busy))),
        f"{rate:.0f}",
        f"{left:+}",
    ]


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


@contextmanager
def playing(kind: str, place: Path, first: int, count: int) -> Iterator[Player]:
    """Play guests, which are connected when the block begins and gone when it has ended."""
    command = [sys.executable, "-m", "benchmarks._guests", kind, str(place), str(first), str(count)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        player = Player(process)
        player.hear()
        try:
            yield player
        finally:
            process.kill()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))

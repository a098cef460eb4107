"""What processes cost, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import frozen

_TICKS: Final = os.sysconf("SC_CLK_TCK")


@frozen
class Cost:
    """CPU time and context switches."""

    seconds: float
    switches: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.seconds - other.seconds, self.switches - other.switches)


def spent(pids: Iterable[int]) -> Cost:
    """Return what these processes have cost so far, in all their threads."""
    folders = [Path(f"/proc/{pid}") for pid in pids]
    switches = [
        _number(task / "status", f"{kind}_ctxt_switches")
        for folder in folders
        for task in (folder / "task").iterdir()
        for kind in ("voluntary", "nonvoluntary")
    ]
    return Cost(sum(map(_seconds, folders)), sum(switches))


def own_memory(pid: int) -> int:
    """Return the memory in KiB that a process shares with no other: not the guests' rings."""
    return _number(Path(f"/proc/{pid}/status"), "RssAnon")


def resident(pid: int) -> int:
    """Return the memory in KiB that a process has, with what it shares."""
    return _number(Path(f"/proc/{pid}/status"), "VmRSS")


def _seconds(folder: Path) -> float:
    """Return the CPU time of a process."""
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _number(status: Path, name: str) -> int:
    """Return a number of /proc/PID/status."""
    return int(status.read_text().partition(f"\n{name}:")[2].split()[0])

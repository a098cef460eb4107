"""A file of results: the tables of a run, and where and when they were measured."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from attrs import Factory, define

from benchmarks._tables import Table, from_json, to_json


def machine() -> str:
    """Return what this machine is."""
    info = Path("/proc/cpuinfo").read_text()
    model = info.partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
    return ", ".join(
        (
            f"{model or platform.machine()}, {os.cpu_count()} CPUs",
            f"Linux {platform.release()}",
            f"Python {platform.python_version()}",
        )
    )


def today() -> str:
    """Return the date."""
    return datetime.now(UTC).date().isoformat()


@define
class Results:
    """The tables of some benchmarks."""

    machine: str = Factory(machine)
    date: str = Factory(today)
    tables: dict[str, list[Table]] = Factory(dict)

    def write(self, file: Path) -> None:
        """Write the file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        tables = {name: list(map(to_json, tables)) for name, tables in self.tables.items()}
        kept = {"machine": self.machine, "date": self.date, "benchmarks": tables}
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> Results:
    """Return what a file holds."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    tables = {name: list(map(from_json, tables)) for name, tables in kept["benchmarks"].items()}
    return Results(kept["machine"], kept["date"], tables)

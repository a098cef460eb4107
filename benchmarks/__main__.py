"""Run all benchmarks, or those that the arguments name: `python -m benchmarks [--results FILE] …`.

The file gets the tables of those that return any, for `python -m benchmarks.report`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import benchmarks
from benchmarks._results import Results
from benchmarks._tables import Table


def found() -> dict[str, Callable[[], list[Table] | None]]:
    modules = [info.name for info in pkgutil.iter_modules(benchmarks.__path__)]
    loaded = {
        name: importlib.import_module(f"benchmarks.{name}") for name in modules if name[0] != "_"
    }
    return {name: module.main for name, module in loaded.items() if hasattr(module, "main")}


def run(names: list[str], file: Path | None) -> str | None:
    known = found()
    unknown = [name for name in names if name not in known]
    if unknown:
        return f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}"
    results = Results()
    for name in names or known:
        print(f"=== {name}", flush=True)
        if tables := known[name]():
            results.tables[name] = tables
            if file:
                results.write(file)
    return None


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--results", type=Path, metavar="FILE")
    parser.add_argument("names", nargs="*", metavar="NAME")
    words = parser.parse_args()
    sys.exit(run(words.names, words.results))

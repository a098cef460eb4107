"""Run all benchmarks, or those that the arguments name."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable

import benchmarks


def found() -> dict[str, Callable[[], None]]:
    modules = [info.name for info in pkgutil.iter_modules(benchmarks.__path__)]
    loaded = {
        name: importlib.import_module(f"benchmarks.{name}") for name in modules if name[0] != "_"
    }
    return {name: module.main for name, module in loaded.items() if hasattr(module, "main")}


def run(names: list[str]) -> str | None:
    known = found()
    unknown = [name for name in names if name not in known]
    if unknown:
        return f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}"
    for name in names or known:
        print(f"=== {name}", flush=True)
        known[name]()
    return None


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

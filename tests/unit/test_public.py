"""What programs may import from vconfs: it is described and typed, and the rest is marked."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = ["vconfs.fuse", "vconfs.guest", "vconfs.host", "vconfs.mounting", "vconfs.testing"]
#: Modules that users start or name, and that no module imports.
STARTED = {"vconfs.__main__", *PUBLIC}
#: What the checker says of classes of packages that it does not look into.
OF_OTHERS = ("Type of base class unknown", "Type of metaclass unknown")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there_and_described(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    for public in module.__all__:
        assert inspect.getdoc(getattr(module, public)), f"{name}.{public} has no docstring"


@pytest.mark.limit(60)
def test_public_names_are_typed() -> None:
    """Each public symbol has a type that every type checker infers alike."""
    checker = Path(sys.executable).parent / "basedpyright"
    words = ["--pythonpath", sys.executable, "--ignoreexternal", "--outputjson"]
    result = subprocess.run(
        [checker, *words, "--verifytypes", "vconfs"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    symbols = json.loads(result.stdout)["typeCompleteness"]["symbols"]
    assert len(symbols) > 1000
    assert [line for symbol in symbols for line in _complaints(symbol)] == []


def _complaints(symbol: dict[str, object]) -> Iterator[str]:
    diagnostics = symbol["diagnostics"]
    assert isinstance(diagnostics, list)
    for diagnostic in diagnostics:
        message = diagnostic["message"]
        ours = not message.startswith(OF_OTHERS) and "PortFS" not in message
        if diagnostic["severity"] == "error" and ours:
            yield f"{symbol['name']}: {message}"


def test_a_module_is_private_if_only_its_package_uses_it() -> None:
    """A module that only its own package imports begins with `_`, and the others do not.

    Commands and kinds of chardev, which are found by their names, are for users and do not either.
    """
    graph = grimp.build_graph("vconfs", cache_dir=None)
    wrong = []
    for module in graph.modules - STARTED:
        package, _, name = module.rpartition(".")
        if graph.find_children(module) or package in ("vconfs", "vconfs.protocol"):
            continue
        importers = graph.find_modules_that_directly_import(module)
        is_inner = all(importer.startswith(f"{package}.") for importer in importers - {package})
        by_name = package in ("vconfs.cli", "vconfs.host.chardevs") and not importers
        if name.startswith("_") and not is_inner:
            wrong.append(f"{module} is private, but {sorted(importers)} import it")
        elif not name.startswith("_") and is_inner and not by_name and not _is_public(module):
            wrong.append(f"only {package} uses {module}: its name should begin with _")
    assert wrong == []


def _is_public(module: str) -> bool:
    """True if a public module shows what is in `module`, or users name it."""
    shown = (
        getattr(getattr(importlib.import_module(public), name), "__module__", "")
        for public in PUBLIC
        for name in importlib.import_module(public).__all__
    )
    is_named = any(hasattr(importlib.import_module(module), word) for word in ("command",))
    is_chardev = module.startswith("vconfs.host.chardevs.")
    return module in shown or is_named or is_chardev

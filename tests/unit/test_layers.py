"""The layers of vconfs: that the contract in pyproject.toml holds, and finds what breaks it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).parent / "lint-imports"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its contract."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vconfs", tmp_path / "vconfs", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_layers_hold(copy: Path) -> None:
    result = lint(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("device/_rings.py", "vconfs.guest.port"),
        ("streams/_socket_addresses.py", "vconfs.host.chardevs.sockets"),
        ("protocol/v8.py", "vconfs.link.link"),
        ("link/_sender.py", "vconfs.link.end"),
    ],
)
def test_an_import_that_is_turned_round_is_found(copy: Path, module: str, imported: str) -> None:
    with (copy / "vconfs" / module).open("a") as file:
        file.write(f"\nimport {imported}\n")
    result = lint(copy)
    assert result.returncode == 1
    name = imported.rpartition(".")[2]
    assert imported in result.stdout or f".{name} " in result.stdout  # of a cycle, either arrow

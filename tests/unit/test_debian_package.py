"""The folder debian/, as far as it repeats what is said elsewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_package_has_our_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.match(r"vconfs \(([^)]*)\) ", (ROOT / "debian/changelog").read_text())
    assert found
    assert found[1] == project["version"]


def test_the_package_has_all_that_pip_puts_beside_the_program() -> None:
    lines = (ROOT / "debian/vconfs.install").read_text().splitlines()
    patterns = [line.split()[0] for line in lines]
    patterns += (ROOT / "debian/vconfs.manpages").read_text().split()
    installed = {path for pattern in patterns for path in ROOT.glob(pattern)}
    beside = {path for name in ("share", "systemd") for path in (ROOT / name).rglob("*")}
    assert installed == {path for path in beside if path.is_file()}

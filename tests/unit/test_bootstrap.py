"""What `make demo` and `make test` install, on a machine that has none of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment where no package is installed, and whose user may not install any."""
    for name, body in {"dpkg-query": "exit 1", "id": "echo 1000"}.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def run_bootstrap(bare: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/bootstrap"), *words]
    return subprocess.run(command, env=bare, capture_output=True, text=True, check=False)


def wanted(bare: dict[str, str], purpose: str) -> set[str]:
    done = run_bootstrap(bare, purpose)
    before, _, packages = done.stderr.partition("run as root: apt-get install ")
    assert (done.returncode, before) == (1, "bootstrap: ")
    return set(packages.split())


def test_the_demo_installs_only_what_it_needs(bare: dict[str, str]) -> None:
    build = {"gcc", "libfuse3-dev", "pkg-config", "python3", "python3-dev", "python3-venv"}
    assert wanted(bare, "demo") == {*build, "attr", "fuse3", "socat"}


def test_the_tests_install_more(bare: dict[str, str]) -> None:
    more = wanted(bare, "test") - wanted(bare, "demo")
    assert {"fish", "man-db", "qemu-system-x86", "zsh"} < more


def test_the_debian_package_needs_tools_of_debian(bare: dict[str, str]) -> None:
    assert {"debhelper", "dh-python", "dpkg-dev", "lintian"} < wanted(bare, "deb")


@pytest.mark.parametrize("words", [(), ("everything",)])
def test_the_purpose_has_to_be_named(bare: dict[str, str], words: tuple[str, ...]) -> None:
    done = run_bootstrap(bare, *words)
    assert (done.returncode, done.stderr) == (2, "usage: bootstrap demo|test|deb\n")


@pytest.mark.parametrize(
    ("target", "script"),
    [
        ("demo", "scripts/bootstrap demo"),
        ("coverage", "scripts/bootstrap test"),
        ("test-unit", "scripts/venv test"),
        ("deb", "scripts/build-deb dist"),
    ],
)
def test_make_bootstraps_for_what_it_does(target: str, script: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "scripts", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    printed = subprocess.check_output(["make", "-n", target], cwd=tmp_path, text=True)
    assert [line for line in printed.splitlines() if line.startswith("scripts/")] == [script]

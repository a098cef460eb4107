"""Finding a kernel that runs: fetches that fail, and kernels that do not boot."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import needs
from tests.uml import kernels

PANIC = "Kernel panic - not syncing: Segfault with no mm"
#: What user-mode Linux 6.1 says on a CPU with AMX, beside other things.
REGISTERS = "userspace - ptrace set fp regs failed, errno = 14"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    needs.programs(*kernels.PROGRAMS)
    monkeypatch.setattr(kernels, "CACHE", tmp_path / "uml")
    return tmp_path / "uml"


def make_kernel(folder: Path, version: str, boots: str) -> None:
    """Make a program that does as if it were a kernel."""
    folder.mkdir(parents=True)
    program = folder / "linux.uml"
    program.write_text(f'#!/bin/sh\n[ "$1" != --version ] || exec echo {version}\n{boots}\n')
    program.chmod(0o755)


def test_a_kernel_that_dies_at_its_first_program_is_not_used(cache: Path) -> None:
    make_kernel(cache / "own", "6.1.1", f"echo booting; echo '{REGISTERS}'; kill -ABRT $$")
    make_kernel(cache / "testing", "7.2.1", "")
    found = kernels.find.__wrapped__()
    assert list(found.kernels) == ["testing"]
    assert found.put_aside == {
        "own": "user-mode Linux of this machine's release is put aside: "
        f"6.1.1 dies at its first program: {REGISTERS}"
    }


def test_the_same_kernel_is_not_used_twice(cache: Path) -> None:
    for suite in kernels.SUITES:
        make_kernel(cache / suite, "7.2.1", "")
    found = kernels.find.__wrapped__()
    assert list(found.kernels) == ["own"]
    assert "is 7.2.1, as that of" in found.put_aside["testing"]


def test_no_kernel_runs(cache: Path) -> None:
    for suite, version in zip(kernels.SUITES, ("6.1.1", "7.2.1"), strict=True):
        make_kernel(cache / suite, version, f"echo '{PANIC}'; exit 1")
    found = kernels.find.__wrapped__()
    assert not found.kernels
    assert list(found.put_aside) == list(kernels.SUITES)


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have apt ask a proxy that does not exist, whatever else it is set up for."""
    config = tmp_path / "apt.conf"
    config.write_text('Dir::Etc { Parts "/dev/null"; Main "/dev/null"; } Acquire::Retries "0";')
    monkeypatch.setenv("APT_CONFIG", str(config))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "script",
    [
        *("guest-uml own", "guest-uml testing", "guest-kernel own", "guest-kernel testing"),
        "guest-noiommu nowhere",
    ],
)
def test_a_fetch_that_fails_says_so_and_leaves_nothing(script: str, cache: Path) -> None:
    name, *suite = script.split()
    done = subprocess.run(
        [kernels.ROOT / "scripts" / name, *suite, cache / "kernel"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{name}: ")
    assert not os.listdir(cache)

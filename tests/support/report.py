"""What a run says at its end: its time by folder, and the peers that it was tried with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import defaultdict
from collections.abc import Generator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

#: Programs that some test runs, and the option that makes each say its version.
_PROGRAMS = {
    "qemu-system-x86_64": "--version",
    "qemu-ga": "--version",
    "systemctl": "--version",
    "fusermount3": "--version",
    "socat": "-V",
    "bash": "--version",
    "busybox": "--help",
    "tmux": "-V",
    "screen": "--version",
    "agetty": "--version",
    "rsync": "--version",
    "node": "--version",
    "strace": "--version",
    "tshark": "--version",
}
_ROOT = Path(__file__).parents[2]


def required() -> bool:
    """True if a skipped test is a failure."""
    return os.environ.get("VCONFS_REQUIRE") == "all"


class ReportPlugin:
    """Add to the summary of a run, and make skips failures where all tests are required."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._tests: defaultdict[str, int] = defaultdict(int)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, Any]:
        report = yield
        if report.skipped and not hasattr(report, "wasxfail") and required():
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped: {report.longrepr[2]}"
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        folder = "/".join(report.nodeid.partition("::")[0].split("/")[:2])
        self._seconds[folder] += report.duration
        self._tests[folder] += report.when == "call"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("time by folder")
        for folder, seconds in sorted(self._seconds.items()):
            line = f"{folder:<16} {self._tests[folder]:>5} tests {seconds:>6.0f} s"
            terminalreporter.write_line(line)
        if set(self._tests) - {"tests/unit"}:
            terminalreporter.section("peers")
            for line in peers():
                terminalreporter.write_line(line)


def peers() -> Iterator[str]:
    """Return a line for each peer that this machine has, with its version."""
    yield f"Linux: {platform.release()}, Python: {platform.python_version()}, CPU: {_cpu()}"
    yield ", ".join(f"{name}: {version(name)}" for name in ("pyfuse3", "trio"))
    for program, option in _PROGRAMS.items():
        yield f"{program}: {_version(program, option)}"
    for kernel in sorted((_ROOT / ".cache" / "uml").glob("*/linux.uml")):
        yield f"user-mode Linux ({kernel.parent.name}): {_version(str(kernel), '--version')}"
    if (prometheus := _ROOT / ".cache" / "prometheus" / "prometheus").exists():
        yield f"Prometheus: {_version(str(prometheus), '--version')}"
    for folder in sorted((_ROOT / ".cache").glob("guest*/lib/modules/*")):
        yield f"guest of QEMU: {folder.name}"


def _cpu() -> str:
    """Return this machine's CPU, and whether it has the registers that old kernels do not know."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    amx = "with" if "amx_tile" in fields.get("flags", "").split() else "without"
    return f"{fields.get('model name', platform.machine())} {amx} AMX"


def _version(program: str, option: str) -> str:
    try:
        done = subprocess.run(
            [program, option],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=10,
            check=False,
        )
    except OSError:
        return "not installed"
    except subprocess.TimeoutExpired:
        return "does not say"
    lines = [line.strip() for line in done.stdout.splitlines()] or [""]
    return next((line for line in lines if re.search(r"\d\.\d", line)), lines[0])

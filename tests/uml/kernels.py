"""The kernels of user-mode Linux: two of Linux's drivers, years apart.

One is that of this machine's release, the other Debian testing's. They do not run on every CPU:
Linux 6.1 and 6.12 die at their first program if the CPU has more registers (AMX) than they have
room for. Whether a kernel runs is found by booting it, which takes a second or two.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from attrs import field, frozen

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "uml"
#: Where a kernel can be from, by the names that scripts/guest-uml has for it.
_OF = {"own": "this machine's release", "testing": "Debian testing"}
SUITES = tuple(_OF)
#: What user-mode Linux and the machinery around it are run with.
PROGRAMS = ("apt-get", "busybox", "setpriv", "unshare", "taskset")
#: Seconds for a guest to boot and power off; on an idle machine it is less than two.
_TRIAL_SECONDS = 60


@frozen
class Kernel:
    """A user-mode Linux that boots here."""

    folder: Path
    version: str

    @property
    def program(self) -> Path:
        return self.folder / "linux.uml"

    @property
    def modules(self) -> list[Path]:
        return sorted(self.folder.glob("*.ko"))

    def module(self, name: str) -> Path:
        return self.folder / f"{name}.ko"

    def command(self, folder: Path, *parameters: str) -> list[str]:
        """Return what boots a guest on one CPU, which ends with us and leaves no process behind.

        `folder` is for the kernel's own files. On one CPU system calls take a tenth of the time,
        and the guest is not known to have failed.
        """
        cpu = str(max(os.sched_getaffinity(0)))
        return [
            *("setpriv", "--pdeathsig", "KILL", "taskset", "-c", cpu),
            *("unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))),
            *("--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-euc", _START, f"{folder}/memory"),
            *(str(self.program), f"uml_dir={folder}/uml/", "con=null", "con0=null,fd:1"),
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"),
            *parameters,
        ]


#: Starts a kernel. Its memory is a file, in a file system that has room for it and lets it run what
#: is in there: /dev/shm often has neither, in containers. And it is not the first process of its
#: namespace: that one's signals to itself are ignored, so a kernel that panics aborts for ever.
_START = """
    ulimit -c 0
    mkdir -p "$0"
    mount -t tmpfs -o mode=700 tmpfs "$0"
    export TMPDIR="$0"
    "$@"
    exit $?
"""


@frozen
class Found:
    """The kernels of this machine that boot, and why others are not used."""

    kernels: dict[str, Kernel] = field(factory=dict)
    put_aside: dict[str, str] = field(factory=dict)

    @property
    def newest(self) -> Kernel:
        return list(self.kernels.values())[-1]


@cache
def find() -> Found:
    """Boot each kernel once."""
    found = Found()
    versions: list[str] = []
    for suite in SUITES:
        problem = fetch(suite)
        kernel = Kernel(CACHE / suite, _version(CACHE / suite))
        if not problem and kernel.version in versions:
            problem = f"is {kernel.version}, as that of this machine's release"
        if problem := problem or _try(kernel):
            found.put_aside[suite] = f"user-mode Linux of {_OF[suite]} is put aside: {problem}"
        else:
            found.kernels[suite] = kernel
        versions.append(kernel.version)
    return found


@cache
def fetch(suite: str) -> str:
    """Fetch a kernel if it is not there, or cannot be started. Return what goes wrong, or ""."""
    folder = CACHE / suite
    if _version(folder):
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    command = [str(ROOT / "scripts/guest-uml"), suite, str(folder)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return done.stderr.strip()
    return "" if _version(folder) else "it cannot be started"


def _version(folder: Path) -> str:
    """Return a kernel's version, or "" if it is not there or cannot be started."""
    with suppress(OSError):
        command = [str(folder / "linux.uml"), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.returncode:
            return done.stdout.strip()
    return ""


def _try(kernel: Kernel) -> str:
    """Boot a kernel, whose first program turns the power off. Return what goes wrong, or ""."""
    busybox = shutil.which("busybox")
    with tempfile.TemporaryDirectory(prefix="vconfs-uml-") as folder:
        command = kernel.command(Path(folder), "mem=64M", f"init={busybox}", "--", "poweroff", "-f")
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=_TRIAL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{kernel.version} does not boot in {_TRIAL_SECONDS} seconds"
    if not done.returncode:
        return ""
    return f"{kernel.version} dies at its first program: {_last_words(done.stdout)}"


def _last_words(console: bytes) -> str:
    """Return what says most of a kernel's end."""
    lines = [line.strip() for line in console.decode(errors="replace").splitlines()]
    telling = [line for line in lines if any(word in line for word in ("errno", "panic"))]
    return (telling or lines or [""])[0]

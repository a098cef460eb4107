"""The releases of QEMU that tests run with: this machine's, and that of Debian testing.

The latter is fetched once into a folder, where it has its own libraries: nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

from tests.support import fetching, needs

CACHE = fetching.ROOT / ".cache" / "qemu"
NAME = "qemu-system-x86_64"
#: Each release's command.
PROGRAMS = {"own": NAME, "newest": str(CACHE / NAME)}
LONG = bool(os.environ.get("VCONFS_LONG"))


def require(release: str) -> str:
    """Return the command of a release, or end the test if the machine cannot run it."""
    if release == "own":
        needs.programs(NAME)
    elif problem := fetch():
        needs.cannot_run(problem)
    return PROGRAMS[release]


@cache
def fetch() -> str:
    """Fetch the newest QEMU if it is not there, or cannot be started. Return what goes wrong."""
    if version("newest"):
        return ""
    shutil.rmtree(CACHE, ignore_errors=True)
    if problem := fetching.fetch("guest-qemu", CACHE):
        return problem
    return "" if version("newest") else "the newest QEMU cannot be started here"


def version(release: str) -> str:
    """Return the version of a release, or "" if it is not there or cannot be started."""
    try:
        done = subprocess.run(
            [PROGRAMS[release], "--version"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.split()[3] if done.returncode == 0 else ""

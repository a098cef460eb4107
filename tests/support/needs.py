"""The needs of tests: without them they are skipped, or fail.

With VCONFS_REQUIRE=all each skip is a failure: see `tests.support.report`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from typing import NoReturn

import pytest


def missing(*programs: str) -> list[str]:
    """Return which of these programs are not installed."""
    return [program for program in programs if shutil.which(program) is None]


def programs(*names: str) -> None:
    """Go on only with these programs."""
    if lacking := missing(*names):
        cannot_run(f"not installed: {', '.join(lacking)}")


def big_program(name: str) -> None:
    """Go on only with this program; as root, install Debian's package that is called like it.

    It is for what is too big for everyday tests.
    """
    if missing(name) and not missing("apt-get") and not os.geteuid():
        words = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", name)
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(words, env=quiet, capture_output=True, check=False)
    programs(name)


def other_users() -> None:
    """Go on only if we can become another user, who can run what is tested."""
    if os.geteuid():
        pytest.skip("needs root, to become other users")
    if problem := _problem_of_others():
        place = "put the repository where all users can read it"
        cannot_run(f"other users cannot run {sys.executable} -m vconfs ({place}): {problem}")


@cache
def _problem_of_others() -> str:
    user = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
    done = subprocess.run(
        [*user, sys.executable, "-c", "import vconfs.__main__"],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


def cannot_run(reason: str) -> NoReturn:
    """End the test, which this machine cannot run."""
    pytest.skip(reason)

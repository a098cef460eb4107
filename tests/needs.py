"""What tests need of the machine: where it is not there, they are skipped, or fail.

They fail where all tests are meant to run: with CI or VCONFS_REQUIRE in the environment.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

_VARIABLES = ("CI", "VCONFS_REQUIRE")


def all_required() -> bool:
    """True if a test that cannot run is a failure."""
    return any(os.environ.get(name, "0") not in ("", "0", "false") for name in _VARIABLES)


def missing(*programs: str) -> list[str]:
    """Return which of these programs are not installed."""
    return [program for program in programs if shutil.which(program) is None]


def programs(*names: str) -> None:
    """Go on only with these programs."""
    if lacking := missing(*names):
        cannot_run(f"not installed: {', '.join(lacking)}")


def cannot_run(reason: str) -> NoReturn:
    """End the test, which this machine cannot run."""
    if all_required():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

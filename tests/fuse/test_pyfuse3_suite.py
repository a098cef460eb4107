"""pyfuse3's own test-suite, as in its source package, with our session instead of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support import needs

pytestmark = pytest.mark.long  # it fetches a package

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "pyfuse3"
#: Takes the place of pyfuse3's main loop.
INSTEAD = Path(__file__).parent / "instead"
#: What is left out: one of two variants of a test, whose operations run on asyncio.
LEFT_OUT = "not hello_asyncio"
#: How many tests pyfuse3 3.5 has without it.
TESTS = 18


def source() -> Path:
    """Return the source package of the installed pyfuse3, which is fetched once."""
    name = f"pyfuse3-{version('pyfuse3')}"
    package = CACHE / f"{name}.tar.gz"
    if not package.exists():
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q")
        chosen = ("--no-deps", "--no-binary", "pyfuse3", "-d", str(CACHE), name.replace("-", "=="))
        done = subprocess.run(
            [*pip, *chosen], capture_output=True, text=True, timeout=200, check=False
        )
        if done.returncode:
            needs.cannot_run(f"the source of {name} cannot be fetched: {done.stderr.strip()}")
    return package


@pytest.mark.limit(400)
def test_pyfuse3s_own_tests_pass_on_our_session(tmp_path: Path) -> None:
    needs.programs("fusermount3", "fusermount")
    subprocess.run(["tar", "-xf", source(), "-C", tmp_path], check=True, timeout=20)
    (folder,) = tmp_path.iterdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts="),
            *("--installed", "--tb=short", "-k", LEFT_OUT, f"--basetemp={tmp_path}/tests"),
            str(folder / "test"),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{INSTEAD}:{ROOT}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed, 1 deselected in", done.stdout)  # and none is skipped
    assert passed, done.stdout
    assert int(passed[1]) >= TESTS

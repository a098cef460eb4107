"""Running the scripts that fetch what tests need into a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support import needs

ROOT = Path(__file__).parents[2]


def fetch(script: str, *arguments: str | Path) -> str:
    """Run a script of scripts/. Return what goes wrong, or an empty string."""
    if needs.missing("apt-get"):
        return f"scripts/{script} cannot fetch what it should: apt-get is missing"
    done = subprocess.run(
        [ROOT / "scripts" / script, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() if done.returncode else ""

"""The settings of a daemon's memory."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import atexit, gc, sys
from vconfs.cli import main
atexit.register(lambda: print(gc.get_freeze_count(), file=sys.stderr))
main(["host", "--listen", "stream:stdio", "--port", "port=null"])
"""


def test_a_daemon_collects_no_garbage_among_what_it_has_when_it_is_ready() -> None:
    """A full collection would look at its modules each time, while the event loop waits."""
    command = [sys.executable, "-c", _SCRIPT]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    assert int(ended.stderr.split()[-1]) > 10_000, ended.stderr

"""Where vconfs is mounted."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Final

from vconfs.names import PID_ATTRIBUTE

_MOUNT = re.compile(r"^\S+ \S+ \S+ \S+ (\S+) .* - fuse\.vconfs ", re.MULTILINE)
_ESCAPE = re.compile(r"\\([0-7]{3})")
#: Seconds that a mount has to answer, where any mount will do.
_PATIENCE: Final = 1.0


def all_mounts() -> list[Path]:
    """List where vconfs is mounted, dead or alive."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return [
        Path(_ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), found[1]))
        for found in _MOUNT.finditer(table)
    ]


def answering(folders: Sequence[Path]) -> list[Path]:
    """Leave out what one stopped daemon would hold us up at: a call into its mount never ends."""
    alive: set[Path] = set()

    def ask(folder: Path) -> None:
        try:
            os.getxattr(folder, PID_ATTRIBUTE)
        except OSError:
            return
        alive.add(folder)

    asking = [Thread(target=ask, args=[folder], daemon=True) for folder in folders]
    for thread in asking:
        thread.start()
    deadline = time.monotonic() + _PATIENCE
    for thread in asking:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [folder for folder in folders if folder in alive]

"""Ports as arguments of commands: by path, or by name."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Final

from vconfs.cli import Failure
from vconfs.names import link_name
from vconfs.status import PID_ATTRIBUTE

_MOUNT = re.compile(r"^\S+ \S+ \S+ \S+ (\S+) .* - fuse\.vconfs ", re.MULTILINE)
_ESCAPE = re.compile(r"\\([0-7]{3})")
#: Seconds that a mount has to answer, where any mount will do.
_PATIENCE: Final = 1.0


def find_port(argument: str) -> Path:
    """Find a port's file: by its path, MOUNTPOINT/NAME, or its NAME in any mount. Failure."""
    path = Path(argument)
    if os.path.exists(path):  # Path.exists fails in a mount whose daemon died
        return _checked(path)
    link = link_name(os.fsencode(path.name))
    if link is None or not path.name:
        raise Failure(f"{argument!r} names no port")
    folders = mounts() if path.name == argument else [path.parent]
    found = [
        port for folder in folders if os.path.exists(port := folder / "by-name" / os.fsdecode(link))
    ]
    if not found:
        raise Failure(f"there is no port {argument}: vconfs ls MOUNTPOINT shows those that are")
    if len(found) > 1:
        raise Failure(f"{argument} is a port of several mounts: name one, like {found[0]}")
    return _checked(found[0])


def mounts() -> list[Path]:
    """List where vconfs is mounted, but for the mounts whose daemon died or does not answer."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return _answering(
        [
            Path(_ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), found[1]))
            for found in _MOUNT.finditer(table)
        ]
    )


def _answering(folders: Sequence[Path]) -> list[Path]:
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


def _checked(path: Path) -> Path:
    try:
        os.getxattr(path, "user.id")
    except OSError:
        raise Failure(f"{path} is not a port of a vconfs mount") from None
    return path

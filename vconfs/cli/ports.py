"""Ports as arguments of commands: by path, or by name."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vconfs.cli import Failure
from vconfs.names import link_name

_MOUNT = re.compile(r"^\S+ \S+ \S+ \S+ (\S+) .* - fuse\.vconfs ", re.MULTILINE)
_ESCAPE = re.compile(r"\\([0-7]{3})")


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
    """List where vconfs is mounted."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return [
        Path(_ESCAPE.sub(lambda octal: chr(int(octal[1], 8)), found[1]))
        for found in _MOUNT.finditer(table)
    ]


def _checked(path: Path) -> Path:
    try:
        os.getxattr(path, "user.id")
    except OSError:
        raise Failure(f"{path} is not a port of a vconfs mount") from None
    return path

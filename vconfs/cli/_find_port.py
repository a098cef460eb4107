"""Finding the port that an argument names, by path or by name."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from vconfs.cli._mount_table import all_mounts, answering, in_time, port_folders, why
from vconfs.errors import VconfsError
from vconfs.files.names import link_name


def find_port(argument: str) -> Path:
    """Return a port's file, by its path, MOUNTPOINT/NAME, or its NAME in any mount.

    The folder of a guest, in a mount that has one for each, counts as a mount; GUEST/NAME is a name
    in that of any mount. Raise VconfsError if there is no such port, or more than one.
    """
    path = Path(argument)
    if argument and _exists(path):
        return _checked(path)
    link = link_name(os.fsencode(path.name))
    if link is None or not path.name:
        raise VconfsError(f"{argument!r} is not the name of a port")
    if path.name == argument:
        folders = places()
    elif path.is_absolute() or _exists(path.parent):
        folders = [path.parent]
    else:
        folders = [mount / path.parent for mount in mounts()]
    found = [port for folder in folders if _exists(port := folder / "by-name" / os.fsdecode(link))]
    if not found:
        raise VconfsError(f"there is no port {argument}: vconfs ls MOUNTPOINT lists the ports")
    if len(found) > 1:
        raise VconfsError(f"several mounts have a port {argument}: name one, like {found[0]}")
    return _checked(found[0])


def mounts() -> list[Path]:
    """Return the mountpoints of vconfs, except those whose daemon died or does not answer."""
    return answering(all_mounts())


def places() -> list[Path]:
    """Return the folders with ports of all mounts that answer."""
    found: list[Path] = []
    for mount in mounts():
        with suppress(OSError, VconfsError):  # it has ended just now
            found += in_time(mount, lambda mount=mount: port_folders(mount))  # type: ignore[misc]
    return found


def _exists(path: Path) -> bool:
    """True if a file exists. Raise VconfsError if we cannot know: we may not, or no daemon runs."""
    try:
        in_time(path, path.stat)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EACCES):
            raise why(path, error) from None
        return False
    return True


def _checked(path: Path) -> Path:
    try:
        in_time(path, lambda: os.getxattr(path, "user.id"))
    except OSError:
        raise VconfsError(f"{path} is not a port of a vconfs mount") from None
    return path

"""What is wrong with a path that a chardev was given, said in one line."""

from __future__ import annotations

import errno
import os

from vconfs.host.chardev import ChardevError


def cannot(path: str, error: OSError) -> ChardevError:
    """Say why `path` cannot be used, and the way out."""
    folder = os.path.dirname(path) or "."
    match error.errno:
        case errno.ENOENT if not os.path.isdir(folder):
            return ChardevError(f"{path}: the folder {folder} does not exist: make it first")
        case errno.ENOTDIR:
            return ChardevError(f"{path}: {folder} is no folder: choose another path")
        case errno.EEXIST | errno.EADDRINUSE:
            return ChardevError(f"{path} exists: choose another path, or remove it")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return ChardevError(
                f"{path}: {error.strerror}: choose another path, or change who may write there"
            )
        case errno.ENXIO:
            return ChardevError(f"{path}: nobody reads it: start its reader first")
    return ChardevError(f"{path}: {error.strerror or error}")

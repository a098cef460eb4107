"""One-line error messages about paths, for the user."""

from __future__ import annotations

import errno
import os

from vconfs.errors import VconfsError


def cannot(path: str, error: OSError) -> VconfsError:
    """Return an error that says why `path` cannot be used, and the way out."""
    folder = os.path.dirname(path) or "."
    match error.errno:
        case errno.ENOENT if not os.path.isdir(folder):
            return VconfsError(f"{path}: the folder {folder} does not exist: make it first")
        case errno.ENOTDIR:
            return VconfsError(f"{path}: {folder} is not a folder: choose another path")
        case errno.EEXIST | errno.EADDRINUSE:
            return VconfsError(f"{path} exists: choose another path, or remove it")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return VconfsError(
                f"{path}: {error.strerror}: choose another path, or change who may write there"
            )
        case errno.ENXIO:
            return VconfsError(f"{path}: no program reads it: start its reader first")
    return VconfsError(f"{path}: {error.strerror or error}")

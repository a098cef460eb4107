"""Paths as users write them: KIND:PATH."""

from __future__ import annotations

import os
from typing import Final

#: The longest path of a unix socket: sockaddr_un, less the NUL.
_PATH_MAX: Final = 107


def path_argument(kind: str, argument: str, how: str = "") -> str:
    """Return `argument` as a path. Raise ValueError if it cannot be one."""
    if not argument:
        raise ValueError(f"{kind} needs a path: {kind}:PATH{how}")
    if "\0" in argument:
        raise ValueError(f"{kind}: a path cannot contain a NUL: {argument!r}")
    return argument


def socket_path(kind: str, argument: str) -> str:
    """Return `argument` as the path of a unix socket. Raise ValueError if it cannot be one."""
    path = path_argument(kind, argument)
    if len(os.fsencode(path)) > _PATH_MAX:
        raise ValueError(f"{kind}: a socket's path has at most {_PATH_MAX} bytes: {path}")
    return path

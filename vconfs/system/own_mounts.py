"""The mounts that this process serves, whose files it must not use itself.

A call on such a file would wait for an answer from the thread that makes it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: The most links in a path that are followed; Linux has the same limit.
_LINKS_MAX: Final = 40

#: The places of our mounts, without links in them; a place can be there twice.
_own: list[str] = []


@contextmanager
def serving(mountpoint: Path | None) -> Iterator[None]:
    """Refuse paths at and below a mountpoint, whose path has no links, while the block runs.

    If it is None, the place of the mount is not known, and nothing is refused.
    """
    places = [] if mountpoint is None else [str(mountpoint)]
    _own.extend(places)
    try:
        yield
    finally:
        for place in places:
            _own.remove(place)


def refuse_own(path: str) -> None:
    """Raise OSError (EDEADLK) if a path leads into a mount that this process serves."""
    if _own and (place := _own_place(path)):
        raise OSError(errno.EDEADLK, f"this is in {place}, the mount of this process", path)


def _own_place(path: str) -> str:
    """Return the mount of ours that a path leads into, or "". Nothing in that mount is touched."""
    rest = os.path.abspath(".").split("/") + path.split("/") if path[:1] != "/" else path.split("/")
    rest.reverse()
    place, links = "/", 0
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            place = os.path.dirname(place)
            continue
        further = os.path.join(place, part)
        if further in _own:
            return further
        try:
            target = os.readlink(further)
        except OSError:  # it is not a link, or not there
            place = further
            continue
        links += 1
        if links > _LINKS_MAX:
            return ""
        rest += reversed(target.split("/"))
        if target.startswith("/"):
            place = "/"
    return ""

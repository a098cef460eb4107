"""Looking for the sockets that a glob matches."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from attrs import define, field, frozen

from vconfs.syntax.globs import Glob, Part

#: The most sockets that are shown, and folders that are looked at.
SOCKETS_MAX: Final = 4096
FOLDERS_MAX: Final = 4096
#: The most names in one folder, so that no guest can use up the sockets of all.
_NAMES_MAX: Final = 1024
#: The most troubles that one look reports.
_TROUBLES_MAX: Final = 64


@frozen
class Match:
    """A socket, and whose it is."""

    guest: str
    name: str
    path: str
    #: Another one if it is another socket at the same path.
    identity: tuple[int, int] = field(eq=False)


class Folder(NamedTuple):
    """A folder: another one if another folder is at the path."""

    path: str
    device: int
    inode: int


@define
class Look:
    """What one look at the file system has found."""

    matches: list[Match] = field(factory=list)
    #: The folders in which a change can change what is found.
    folders: set[Folder] = field(factory=set)
    #: True if a folder could not be listed now, and may have sockets that were not found.
    partial: bool = False
    #: Path → what is wrong with it.
    troubles: dict[str, str] = field(factory=dict)

    def watch(self, path: str) -> None:
        """Add a folder that is to be watched."""
        with suppress(OSError):  # it has gone just now
            status = os.stat(path)
            self.folders.add(Folder(path, status.st_dev, status.st_ino))

    def complain(self, path: str, reason: str) -> None:
        """Note what is wrong with a path."""
        if len(self.troubles) < _TROUBLES_MAX:
            self.troubles[path] = reason


@frozen
class _Place:
    """A folder on the way to the sockets."""

    path: str
    #: The name that a part before has given to the guest.
    guest: str = ""


def look(glob: Glob) -> Look:
    """Look for all sockets that a glob matches. This may wait for a file system."""
    found = Look()
    places = [_Place("/")]
    for part in glob.folders:
        places = [below for place in places for below in _enter(place, part, found)]
        if len(places) > FOLDERS_MAX:
            found.complain(places[FOLDERS_MAX].path, f"more than {FOLDERS_MAX} folders match")
            del places[FOLDERS_MAX:]
    taken: dict[str, str] = {}
    for place in places:
        for match in _sockets(place, glob.files, found):
            if len(found.matches) == SOCKETS_MAX:
                found.complain(match.path, f"more than {SOCKETS_MAX} sockets match")
                return found
            # One guest has one folder, or what %g says; and one port of each name.
            whose = f"{match.guest}/{match.name}" if glob.names_guests else match.guest
            first = taken.setdefault(whose, match.path if glob.names_guests else place.path)
            if first in (match.path, place.path):
                found.matches.append(match)
            else:
                found.complain(match.path, f"{first} is {whose} already: name the guests with %g")
    return found


def _enter(place: _Place, part: Part, found: Look) -> Iterator[_Place]:
    """Yield the folders in a folder that a part of the glob matches."""
    for name, guest in _names(place, part, found):
        path = os.path.join(place.path, name)
        if os.path.isdir(path):
            yield _Place(path, guest)
        elif part.pattern is None:
            found.watch(place.path)  # it may come


def _sockets(place: _Place, part: Part, found: Look) -> Iterator[Match]:
    found.watch(place.path)
    for name, guest in _names(place, part, found):
        path = os.path.join(place.path, name)
        try:
            status = os.lstat(path)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                found.complain(path, error.strerror or str(error))
            continue
        guest = guest or os.path.basename(place.path)
        if not stat.S_ISSOCK(status.st_mode):
            found.complain(path, "not a socket")
        elif guest.startswith("."):
            found.complain(path, f"a guest cannot have the name {guest!r}")
        else:
            yield Match(guest, name, path, (status.st_ino, status.st_ctime_ns))


def _names(place: _Place, part: Part, found: Look) -> Iterator[tuple[str, str]]:
    """Yield the names in a folder that a part matches, each with the guest's name."""
    if part.pattern is None:
        yield part.name, place.guest
        return
    found.watch(place.path)
    try:
        with os.scandir(place.path) as entries:
            matching = (entry.name for entry in entries if part.match(entry.name))
            names = sorted(islice(matching, _NAMES_MAX + 1))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # else it has gone just now
            found.complain(place.path, error.strerror or str(error))
            found.watch(os.path.dirname(place.path))  # its permissions may change
            found.partial = found.partial or error.errno != errno.EACCES
        return
    if len(names) > _NAMES_MAX:
        found.complain(place.path, f"more than {_NAMES_MAX} names match there")
    for name in names[:_NAMES_MAX]:
        matched = part.match(name)
        yield name, matched["guest"] if matched and part.names_guest else place.guest

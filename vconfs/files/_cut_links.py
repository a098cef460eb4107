"""The links whose names are cut, because the name of a port is longer than a file name can be."""

from __future__ import annotations

from vconfs.files.names import is_cut, link_name
from vconfs.guest.port import Port


class CutLinks:
    """Finds the name of a port by its link; an observer of the manager."""

    def __init__(self) -> None:
        #: Link -> the names that have it (one, but for a collision of hashes) -> how many ports.
        self._names: dict[bytes, dict[bytes, int]] = {}

    def name_of(self, link: bytes) -> bytes | None:
        """Return the name of a port that has this link, or None if no port has."""
        return next(iter(self._names.get(link, ())), None)

    def port_added(self, port: Port) -> None:
        """Note the name of a port."""
        self._add(port.name)

    def port_removed(self, port: Port) -> None:
        """Forget the name of a port."""
        self._discard(port.name)

    def port_renamed(self, port: Port, old: bytes) -> None:
        """Note the new name of a port, and forget the old one."""
        self._discard(old)
        self._add(port.name)

    def port_changed(self, port: Port) -> None:
        """Do nothing: the name has not changed."""

    def _add(self, name: bytes) -> None:
        link = link_name(name)
        if link is not None and is_cut(link):
            names = self._names.setdefault(link, {})
            names[name] = names.get(name, 0) + 1

    def _discard(self, name: bytes) -> None:
        link = link_name(name)
        if link is None or (names := self._names.get(link)) is None:
            return
        names[name] -= 1
        if not names[name]:
            del names[name]
        if not names:
            del self._names[link]

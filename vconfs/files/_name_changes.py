"""Announcing the names in a mount when ports come, go, or get another name."""

from __future__ import annotations

from vconfs.files.announcer import Announcer, Kind
from vconfs.files.names import link_name, port_file
from vconfs.files.tree import Tree
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager


class NameChanges:
    """Passes the names that have changed to the announcer; an observer of the manager."""

    def __init__(self, manager: PortManager, announcer: Announcer, tree: Tree) -> None:
        self._manager = manager
        self._tree = tree
        self._announcer = announcer

    def port_added(self, port: Port) -> None:
        """Announce the new file."""
        self._announcer.created(self._tree.root, port_file(port.id))
        self._announce_link(port.name, created=True)

    def port_removed(self, port: Port) -> None:
        """Announce that the file is gone."""
        inode = self._tree.port_inode(port.id)
        self._announcer.removed(self._tree.root, port_file(port.id), inode)
        self._announce_link(port.name, created=False)

    def port_renamed(self, port: Port, old: bytes) -> None:
        """Announce the changed attribute and links."""
        self._announcer.changed(self._tree.root, port_file(port.id))
        self._announce_link(old, created=False)
        self._announce_link(port.name, created=True)

    def port_changed(self, port: Port) -> None:
        """Do nothing: the name has not changed."""

    def _announce_link(self, name: bytes, *, created: bool) -> None:
        link = link_name(name)
        if link is None:
            return
        there = self._manager.by_name(name)
        if created and there is not None:
            self._announcer.created(self._tree.by_name, link, Kind.LINK)
        elif not created and there is None:
            self._announcer.removed(self._tree.by_name, link, self._tree.by_name_link(link).inode)

"""The open files of a port, and what the host was told of them.

See "Theory of operation" in `vconfs.guest.port` for opens that are quiet until the port is used.
"""

from __future__ import annotations

import errno
import os

from attrs import define, field

from vconfs.guest._attachment import Attachment, PortLine
from vconfs.guest.opener import Opener


@define(eq=False)
class Openers:
    """The openers of a port."""

    _at: Attachment
    #: In the order in which they opened the port.
    all: dict[Opener, None] = field(init=False, factory=dict)
    #: True if any opener has read, written or polled since the first open.
    used: bool = field(init=False, default=False)
    #: True if the host was told that the port is open, or will be once the device is there.
    _told: bool = field(init=False, default=False)

    def add(self, opener: Opener, *, quiet: bool) -> None:
        """Add an opener; see `Port.open`."""
        if self._at.state.removed:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        if self.all and self._at.options.exclusive:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.all[opener] = None
        line = self._at.line
        if not quiet or (line is not None and line.can_refuse):
            try:
                self.tell()
            except OSError:
                del self.all[opener]
                self._told = False
                raise
        if self._at.tap is not None:
            self._at.tap.happened("open", **_who(opener))

    def remove(self, opener: Opener) -> None:
        """Remove an opener."""
        if opener in self.all and self._at.tap is not None:
            self._at.tap.happened("close", **_who(opener))
        self.all.pop(opener, None)

    def tell(self) -> None:
        """Tell the host that the port is open, if it is open and the host does not know yet."""
        if self.all and not self._told:
            self._told = True
            if self._at.line is not None:
                self._at.line.open_port(self._at.id, True)

    def tell_new_host(self, line: PortLine) -> None:
        """Tell the host of a new device that the port is open, if the last one knew it."""
        self._told = self._told or (line.can_refuse and bool(self.all))
        if self._told:
            line.open_port(self._at.id, True)

    def use(self) -> None:
        """Note that an opener reads, writes or polls, and tell the host of the open."""
        if not self.used and self.all:
            self.used = True
            self.tell()

    def all_closed(self) -> None:
        """Tell the host that the port is closed, if it knew that it was open."""
        told, self._told, self.used = self._told, False, False
        if told and self._at.line is not None:
            self._at.line.open_port(self._at.id, False)


def _who(opener: Opener) -> dict[str, object]:
    return {"pid": opener.pid, "program": opener.command.decode(errors="surrogateescape")}

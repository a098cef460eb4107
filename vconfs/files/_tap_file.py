"""What passes through the ports as a file of lines: MOUNTPOINT/.tap.

Only the user who runs the mount, and root, may open it. For its lines see protocol/tap.py. A
program that opens it for reading gets the records of all ports. One that opens it for reading and
writing gets nothing until it writes the ids of ports, separated by white space: it then gets the
records of these, also if they are added later. Another write chooses other ports. Either way the
ports that are there come first ("present").

Reads wait for a line, unless with O_NONBLOCK, and poll reports one. The end of the mount is the end
of the file. For each opener up to 4 MiB of lines wait; those beyond that are counted as lost. Up to
16 openers at a time are served; a further open fails with ENFILE.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from vconfs.files.lines_reader import LinesReader
from vconfs.guest.opener import Opener
from vconfs.guest.port import Port
from vconfs.link.taps import Tapper, Taps
from vconfs.protocol.events import Buffer
from vconfs.protocol.tap import TAPPERS_MAX, parse_selection


class TapReader(LinesReader):
    """One opener of the file."""

    def __init__(
        self,
        taps: Taps[Port],
        on_change: Callable[[LinesReader], None],
        forget: Callable[[Opener], None],
    ) -> None:
        self.tapper: Tapper = Tapper(self.wake)
        super().__init__(on_change, self.tapper.backlog, forget)
        self._taps = taps

    def write_nowait(self, data: Buffer, *, nonblock: bool = False) -> int:
        """Watch the ports with these ids from now on. Raise EINVAL if they are not ids."""
        try:
            self.tapper.wanted = parse_selection(data)
        except ValueError:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
        self._taps.begin(self.tapper)
        return len(data)


class TapFile:
    """The file."""

    def __init__(self, taps: Taps[Port]) -> None:
        self._taps = taps
        self._readers: dict[Opener, TapReader] = {}

    def open(
        self, opener: Opener, flags: int, on_change: Callable[[LinesReader], None]
    ) -> TapReader:
        """Open the file; raise EACCES if only for writing, ENFILE if there are too many openers."""
        mode = flags & os.O_ACCMODE
        if mode == os.O_WRONLY:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        if len(self._readers) >= TAPPERS_MAX:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        reader = self._readers[opener] = TapReader(self._taps, on_change, self._closed)
        if mode == os.O_RDONLY:
            self._taps.begin(reader.tapper)
        return reader

    def shut(self) -> None:
        """End the file for all openers, because the mount ends."""
        for reader in list(self._readers.values()):
            reader.end()

    def _closed(self, opener: Opener) -> None:
        self._taps.end(self._readers.pop(opener).tapper)

"""A pty whose master we hold, and whose slave other programs open and close repeatedly."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

from vconfs.system.descriptors import owned
from vconfs.system.inotify import Change, Changes, watching
from vconfs.system.queue_sizes import bytes_to_read

#: Milliseconds in which the kernel moves data that waits for space to the terminal's read buffer.
_FLIP = 5


@frozen(eq=False)
class RawPty:
    """A pty that starts in raw mode; see `open_pty`."""

    master: int
    path: str  # of the slave
    _group: int  # the slave's group at first
    _opens: Changes

    @property
    def occupied(self) -> bool:
        """True if a program has the slave open, or has left data for us to read.

        A master without an open slave reports POLLHUP, and POLLIN as long as there is data.
        """
        poll = select.poll()
        poll.register(self.master, select.POLLIN)
        mask = next((mask for _, mask in poll.poll(0)), 0)
        return not mask & select.POLLHUP or bool(mask & select.POLLIN)

    async def wait_occupied(self) -> None:
        """Wait until `occupied` is true. One task at a time may wait."""
        while True:
            self._opens.happened = False
            if self.occupied:
                return
            await self._opens.wait()

    def unread(self) -> int:
        """Return how many of the bytes that we wrote programs could read from the slave now.

        The result is 0 when everything has been read. Otherwise it may be too small: data that the
        terminal's read buffer cannot hold waits in the kernel and is not counted.
        """
        with self._slave() as slave:
            return bytes_to_read(slave) if slave is not None else 0

    def take_unread(self) -> int:
        """Discard the bytes that programs have not read from the slave, and return how many."""
        taken = 0
        with self._slave() as slave:
            if slave is None or not bytes_to_read(slave):
                return 0
            more = select.poll()
            more.register(slave, select.POLLIN)
            while more.poll(_FLIP):  # data that waited comes as soon as there is space
                taken += len(os.read(slave, 1 << 16))
        return taken

    @contextmanager
    def _slave(self) -> Iterator[int | None]:
        """Open the slave for a moment. It is None if a program keeps others out (TIOCEXCL)."""
        try:
            slave = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            yield None
            return
        with owned(slave):
            yield slave

    def give_to(self, uid: int, gid: int, mode: int) -> None:
        """Set the slave's owner and mode. If `gid` is our own group, keep the group of terminals.

        Raise OSError if we may not change them.
        """
        status = os.stat(self.path)
        owner = uid, self._group if gid == os.getgid() else gid
        if owner != (status.st_uid, status.st_gid):
            os.chmod(self.path, 0)  # no other program can open it in between
            os.chown(self.path, *owner)
        os.chmod(self.path, mode)

    @property
    def size(self) -> tuple[int, int]:
        """The columns and rows of the window."""
        answer = fcntl.ioctl(self.master, termios.TIOCGWINSZ, bytes(8))
        rows, cols, _, _ = struct.unpack("4H", answer)
        return cols, rows

    def resize(self, cols: int, rows: int) -> None:
        """Set the window size. Foreground programs of the pty get SIGWINCH if it changed."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))


@contextmanager
def open_pty() -> Iterator[RawPty]:
    """Make a pty that exists while the block runs. Raise OSError if no more can be made."""
    master, slave = os.openpty()
    with owned(master):
        with owned(slave):
            tty.setraw(slave)
            path = os.ttyname(slave)
        with watching(path, Change.OPENED) as opens:
            yield RawPty(master, path, os.stat(path).st_gid, opens)

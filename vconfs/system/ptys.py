"""A pty whose master we hold and whose slave others open, close and open again."""

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

from vconfs.system.inotify import Change, Changes, watching
from vconfs.system.pipes import bytes_to_read

#: Milliseconds in which the kernel moves what waits for space in a terminal to where it is read.
_FLIP = 5


@frozen(eq=False)
class RawPty:
    """A pty that starts in raw mode; see `open_pty`."""

    master: int
    path: str  # of the slave
    _group: int  # that the slave had at first
    _opens: Changes

    @property
    def occupied(self) -> bool:
        """Whether somebody has the slave open, or has left something for us to read.

        A master that nobody is at reports POLLHUP, and POLLIN as long as there is data.
        """
        poll = select.poll()
        poll.register(self.master, select.POLLIN)
        mask = next((mask for _, mask in poll.poll(0)), 0)
        return not mask & select.POLLHUP or bool(mask & select.POLLIN)

    async def wait_occupied(self) -> None:
        """Wait until somebody is there; one task may."""
        while True:
            self._opens.happened = False
            if self.occupied:
                return
            await self._opens.wait()

    def unread(self) -> int:
        """Tell how many bytes that we wrote programs there could read now, and have not.

        None, when there is nothing left; else it is often less than all: what the terminal cannot
        hold waits where it is not seen.
        """
        with self._slave() as slave:
            return bytes_to_read(slave) if slave is not None else 0

    def take_unread(self) -> int:
        """Take away what programs there have not read, and tell how many bytes that were."""
        taken = 0
        with self._slave() as slave:
            if slave is None or not bytes_to_read(slave):
                return 0
            more = select.poll()
            more.register(slave, select.POLLIN)
            while more.poll(_FLIP):  # what had to wait comes as soon as there is space for it
                taken += len(os.read(slave, 1 << 16))
        return taken

    @contextmanager
    def _slave(self) -> Iterator[int | None]:
        """Open the slave for a moment; None: programs there keep others out (TIOCEXCL)."""
        try:
            slave = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            yield None
            return
        try:
            yield slave
        finally:
            os.close(slave)

    def give_to(self, uid: int, gid: int, mode: int) -> None:
        """Let these use the slave, where our own group stands for that of terminals.

        OSError: we may not give it away.
        """
        status = os.stat(self.path)
        owner = uid, self._group if gid == os.getgid() else gid
        if owner != (status.st_uid, status.st_gid):
            os.chmod(self.path, 0)  # nobody gets in between
            os.chown(self.path, *owner)
        os.chmod(self.path, mode)

    def resize(self, cols: int, rows: int) -> None:
        """Set the window's size; programs in the foreground there get SIGWINCH if it changed."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))


@contextmanager
def open_pty() -> Iterator[RawPty]:
    """Make a pty for as long as the block runs; OSError when there are no more."""
    master, slave = os.openpty()
    try:
        try:
            tty.setraw(slave)
            path = os.ttyname(slave)
        finally:
            os.close(slave)
        with watching(path, Change.OPENED) as opens:
            yield RawPty(master, path, os.stat(path).st_gid, opens)
    finally:
        os.close(master)

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

import trio
from attrs import frozen
from inotify_simple import INotify, flags


@frozen(eq=False)
class RawPty:
    """A pty that starts in raw mode; see `open_pty`."""

    master: int
    path: str  # of the slave
    _opens: INotify

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
        while not self.occupied:
            await trio.lowlevel.wait_readable(self._opens)
            self._opens.read(timeout=0)

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
        with INotify() as opens:
            opens.add_watch(path, flags.OPEN)
            yield RawPty(master, path, opens)
    finally:
        os.close(master)

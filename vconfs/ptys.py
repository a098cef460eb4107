"""A pty whose master we hold and whose slave others open, close and open again."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio
from attrs import frozen

_IN_OPEN = 0x20  # sys/inotify.h
_libc = ctypes.CDLL(None, use_errno=True)


@frozen(eq=False)
class RawPty:
    """A pty that starts in raw mode; see `open_pty`."""

    master: int
    path: str  # of the slave
    _opens: int  # an inotify descriptor

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
            with suppress(BlockingIOError):
                os.read(self._opens, 4096)

    def give_to(self, uid: int, gid: int, mode: int) -> None:
        """Let these use the slave; OSError: we may not give it away."""
        os.chmod(self.path, mode)
        # An owner that is us already needs no change, nor the privilege for one.
        owner = [-1 if id == ours else id for id, ours in ((uid, os.getuid()), (gid, os.getgid()))]
        if owner != [-1, -1]:
            os.chown(self.path, *owner)

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
        opens = _watch_opens(path)
        try:
            yield RawPty(master, path, opens)
        finally:
            os.close(opens)
    finally:
        os.close(master)


def _watch_opens(path: str) -> int:
    """Make an inotify descriptor that is readable when somebody has opened the file.

    Not by inotify_simple, whose first use runs ldconfig: we may not wait for another program.
    """
    opens: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if opens < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if _libc.inotify_add_watch(opens, os.fsencode(path), _IN_OPEN) < 0:
        code = ctypes.get_errno()
        os.close(opens)
        raise OSError(code, os.strerror(code))
    return opens

"""Connecting to the unix socket that a hypervisor made, wherever it has put it."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from contextlib import ExitStack
from typing import Final

import trio
from attrs import define, field

from vconfs.system.descriptors import owned
from vconfs.system.unix_accepts import wait_accepted
from vconfs.system.unix_sockets import close_socket, refuse_rights

#: Seconds that a server has to accept a connection; after that, it is busy.
_ACCEPTING: Final = 1.0
#: How a socket is found, whatever it is.
_FIND: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


async def connect(path: str, limiter: trio.CapacityLimiter) -> trio.socket.SocketType:
    """Connect to the unix socket at a path of any length, which must not be a symlink.

    The hypervisor may have put a file system there that does not answer. So a thread of the limiter
    looks the path up, and is given up after a while. Raise OSError: EBUSY if the server does not
    accept the connection, or closes it at once; ETIMEDOUT if the file system does not answer.
    """
    attempt = _Attempt(path)
    with trio.move_on_after(_ACCEPTING) as scope:
        try:
            connected = await trio.to_thread.run_sync(
                attempt.make, abandon_on_cancel=True, limiter=limiter
            )
        except trio.Cancelled:
            attempt.give_up()
            raise
    if scope.cancelled_caught:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    sock = trio.socket.from_stdlib_socket(connected)
    try:
        if not await wait_accepted(sock, _ACCEPTING):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    except BaseException:
        close_socket(sock)
        raise
    return sock


@define(eq=False)
class _Attempt:
    """An attempt to connect, in a thread, whose socket is closed if it is given up."""

    _path: str
    _lock: threading.Lock = field(init=False, factory=threading.Lock)
    _given_up: bool = field(init=False, default=False)
    _made: socket.socket | None = field(init=False, default=None)

    def make(self) -> socket.socket:
        """Return a connected socket. Raise OSError."""
        sock = _connected(self._path)
        with self._lock:
            self._made = sock
            if self._given_up:
                sock.close()
        return sock

    def give_up(self) -> None:
        """Close the socket, now or as soon as there is one."""
        with self._lock:
            self._given_up = True
            if self._made is not None:
                self._made.close()


def _connected(path: str) -> socket.socket:
    """Return a socket that the server has accepted or has in its backlog. Raise OSError."""
    with owned(os.open(path, _FIND)) as found:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        with ExitStack() as failed:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            failed.callback(sock.close)
            refuse_rights(sock)
            try:
                sock.connect(f"/proc/self/fd/{found}")
            except BlockingIOError:  # the backlog is full
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY)) from None
            failed.pop_all()
    return sock

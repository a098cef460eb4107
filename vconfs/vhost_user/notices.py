"""Notifications between the two ends: kicks and calls.

A descriptor to notify by is an eventfd as a rule; some front-ends use pipes or sockets, into which
eight bytes are written. It stays what it is in both processes, flags included, and the peer can
change these at any time: so each end makes sure, each time, that it is not made to wait by it.
"""

from __future__ import annotations

import os
import select
import stat
from contextlib import suppress
from typing import Final, Generic, TypeVar

import trio

from vconfs.protocol.errors import RemoteProtocolError

K = TypeVar("K")

_ONE: Final = (1).to_bytes(8, "little")
_READ_SIZE: Final = 1 << 12


def check_notifier(fd: int) -> None:
    """Make sure that a descriptor of the peer's can be waited for.

    RemoteProtocolError: it is something else, like a file.
    """
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or _is_eventfd(fd)):
        raise RemoteProtocolError("a descriptor to notify by is no eventfd, pipe or socket")


def notify(fd: int) -> None:
    """Notify the peer; if it has not seen the last notifications yet, they are enough."""
    with suppress(OSError):  # a peer that has closed its end leaves, or wants none
        os.set_blocking(fd, False)
        os.write(fd, _ONE)


def _is_eventfd(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"


class Notices(Generic[K]):
    """Descriptors that the peer notifies us by, as one, each with a key for what it is about.

    Edges are waited for: what is written tells nothing, so that eventfds need not be read.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, K] = {}
        self._filling: set[int] = set()  # pipes and sockets: they must be read

    def close(self) -> None:
        """Wait for nothing any more."""
        self._epoll.close()

    def add(self, fd: int, key: K) -> None:
        """Wait for `fd` as well, which was checked and is removed before it is closed."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._keys[fd] = key
        if not _is_eventfd(fd):
            self._filling.add(fd)

    def add_end(self, fd: int, key: K) -> None:
        """Wait for the end of the peer's side of a socket, and not for what comes there."""
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLET)
        self._keys[fd] = key

    def remove(self, fd: int) -> None:
        """Wait for `fd` no more."""
        del self._keys[fd]
        self._filling.discard(fd)
        self._epoll.unregister(fd)

    async def wait(self) -> list[K]:
        """Wait for notifications, and tell what they are about."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        fds = [fd for fd, _ in self._epoll.poll(0)]
        for fd in self._filling.intersection(fds) if self._filling else ():
            with suppress(OSError):
                os.set_blocking(fd, False)
                os.read(fd, _READ_SIZE)
        return [self._keys[fd] for fd in fds]

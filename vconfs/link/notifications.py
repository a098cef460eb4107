"""Notifications between the two ends: kicks and calls.

A descriptor to notify by is an eventfd as a rule; some front-ends use pipes or sockets, into which
eight bytes are written. It is the same in both processes, flags included, and the peer can change
these at any time, fill it, empty it, or keep it locked. So nothing is done with it here that the
peer could make wait: eventfds are raised by the kernel, unix sockets are sent to with MSG_DONTWAIT,
and what remains (writing to pipes, emptying pipes and sockets) is done in threads.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from typing import Final, Generic, TypeVar

import trio

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.system.aside import Chore, is_eventfd, is_pipe, is_unix_socket, send_now
from vconfs.system.eventfds import raiser

K = TypeVar("K")

_ONE: Final = (1).to_bytes(8, "little")
_READ_SIZE: Final = 1 << 12


def check_notifier(fd: int) -> None:
    """Make sure that a descriptor of the peer's can be waited for.

    RemoteProtocolError: it is something else, like a file.
    """
    if not (is_eventfd(fd) or is_pipe(fd) or is_unix_socket(fd)):
        raise RemoteProtocolError("a descriptor to notify by is no eventfd, pipe or unix socket")


class Bell:
    """Notifies the peer by a descriptor that was checked, and stays its owner's.

    OSError: eventfds cannot be raised here.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        if is_eventfd(fd):
            self._ring = raiser().raise_eventfd
        elif is_pipe(fd):
            chore = Chore(fd, _write)
            self._ring = lambda fd: chore.ask()
        else:
            self._ring = lambda fd: send_now(fd, _ONE)

    def ring(self) -> None:
        """Notify; if the peer has not seen the last notifications yet, they are enough."""
        with suppress(OSError):  # a peer that has closed its end leaves, or wants none
            self._ring(self._fd)


def _write(fd: int) -> None:
    os.set_blocking(fd, False)
    os.write(fd, _ONE)


class Notices(Generic[K]):
    """Descriptors that the peer notifies us by, as one, each with a key for what it is about.

    Edges are waited for: what is written tells nothing, so that eventfds need not be read.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, K] = {}
        self._filling: dict[int, Chore] = {}  # pipes and sockets: they must be read
        self._emptied = _Emptied()
        self._epoll.register(self._emptied.event, select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._epoll.close()
        self._emptied.close()

    def add(self, fd: int, key: K) -> None:
        """Wait for `fd` as well, which was checked and is removed before it is closed."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._keys[fd] = key
        if not is_eventfd(fd):
            self._filling[fd] = Chore(fd, lambda own: self._emptied.empty(own, fd))

    def add_end(self, fd: int, key: K) -> None:
        """Wait for the end of the peer's side of a socket, and not for what comes there."""
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLET)
        self._keys[fd] = key

    def remove(self, fd: int) -> None:
        """Wait for `fd` no more."""
        del self._keys[fd]
        self._filling.pop(fd, None)
        self._epoll.unregister(fd)

    async def wait(self) -> list[K]:
        """Wait for notifications, and tell what they are about."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        fds = [fd for fd, _ in self._epoll.poll(0)]
        for fd in self._filling.keys() & fds if self._filling else ():
            with suppress(OSError):
                self._filling[fd].ask()
        if self._emptied.event in fds:
            fds += self._emptied.take()
        return [self._keys[fd] for fd in dict.fromkeys(fds) if fd in self._keys]


class _Emptied:
    """What threads have read since it was asked for: a notice that came meanwhile shows no more."""

    def __init__(self) -> None:
        #: Readable when there is something to take; only we have it.
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._fds: list[int] = []
        self._closed = False

    def close(self) -> None:
        """Close the eventfd: threads may come later."""
        with self._lock:
            self._closed = True
            os.close(self.event)

    def empty(self, own: int, fd: int) -> None:
        """Read what is in `own`, a copy of `fd`, and say so; OSError."""
        os.set_blocking(own, False)
        os.read(own, _READ_SIZE)
        with self._lock:
            if not self._closed:
                self._fds.append(fd)
                os.eventfd_write(self.event, 1)

    def take(self) -> list[int]:
        """Return what was read."""
        with self._lock:
            fds, self._fds = self._fds, []
        return fds

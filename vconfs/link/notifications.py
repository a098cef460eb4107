"""Notifications between the two ends: kicks and calls.

A notification descriptor is usually an eventfd; some front-ends use pipes or sockets, to which
eight bytes are written. Both processes share the open file, including its flags: at any time the
peer can change the flags, fill it, empty it, or keep it locked. So we make no call on it that the
peer could block: the kernel raises eventfds for us, unix sockets are sent to with MSG_DONTWAIT, and
the rest (writing to pipes, emptying pipes and sockets) is done in threads.
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
    """Check that the peer's descriptor is of a kind that can notify.

    Raise RemoteProtocolError if it is something else, like a file.
    """
    if not (is_eventfd(fd) or is_pipe(fd) or is_unix_socket(fd)):
        raise RemoteProtocolError(
            "a notification descriptor is not an eventfd, pipe or unix socket"
        )


class Bell:
    """A way to notify the peer, by a checked descriptor that still belongs to the caller.

    Raise OSError if this system cannot raise eventfds.
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
        """Notify the peer. Do nothing if earlier notifications that it has not seen fill `fd`."""
        with suppress(OSError):  # the peer has closed its end: it leaves, or wants no notification
            self._ring(self._fd)


def _write(fd: int) -> None:
    os.set_blocking(fd, False)
    os.write(fd, _ONE)


class Notices(Generic[K]):
    """A set of descriptors by which the peer notifies us, each with a key for its meaning.

    They are watched edge-triggered: the bytes written mean nothing, so eventfds need not be read.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, K] = {}
        self._filling: dict[int, Chore] = {}  # pipes and sockets, which would fill if unread
        self._emptied = _Emptied()
        self._epoll.register(self._emptied.event, select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        """Stop watching, and close our own descriptors."""
        self._epoll.close()
        self._emptied.close()

    def add(self, fd: int, key: K) -> None:
        """Watch `fd`, which the caller has checked, and removes before it closes it."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._keys[fd] = key
        if not is_eventfd(fd):
            self._filling[fd] = Chore(fd, lambda own: self._emptied.empty(own, fd))

    def add_end(self, fd: int, key: K) -> None:
        """Watch a socket for the end of the peer's side only, not for data."""
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLET)
        self._keys[fd] = key

    def remove(self, fd: int) -> None:
        """Stop watching `fd`."""
        del self._keys[fd]
        self._filling.pop(fd, None)
        self._epoll.unregister(fd)

    async def wait(self) -> list[K]:
        """Wait for notifications, and return their keys."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        fds = [fd for fd, _ in self._epoll.poll(0)]
        for fd in self._filling.keys() & fds if self._filling else ():
            with suppress(OSError):
                self._filling[fd].ask()
        if self._emptied.event in fds:
            fds += self._emptied.take()
        return [self._keys[fd] for fd in dict.fromkeys(fds) if fd in self._keys]


class _Emptied:
    """The descriptors that threads have emptied since the last `take`.

    A notification that came before a thread's read may have no edge of its own any more.
    """

    def __init__(self) -> None:
        #: An eventfd of our own, readable when there is something to take.
        self.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._fds: list[int] = []
        self._closed = False

    def close(self) -> None:
        """Close the eventfd. Threads may still finish after this."""
        with self._lock:
            self._closed = True
            os.close(self.event)

    def empty(self, own: int, fd: int) -> None:
        """Read what is in `own`, a duplicate of `fd`, and report it. Raise OSError."""
        os.set_blocking(own, False)
        os.read(own, _READ_SIZE)
        with self._lock:
            if not self._closed:
                self._fds.append(fd)
                os.eventfd_write(self.event, 1)

    def take(self) -> list[int]:
        """Return the emptied descriptors, and forget them."""
        with self._lock:
            fds, self._fds = self._fds, []
        return fds

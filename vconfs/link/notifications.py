"""Notifications between the two ends: kicks and calls.

A notification descriptor is usually an eventfd; some front-ends use pipes or sockets, to which
eight bytes are written. Both processes share the open file, including its flags: at any time the
peer can change the flags, fill it, empty it, or keep it locked. So we make no call on it that the
peer could block: the kernel raises eventfds for us, unix sockets are sent to with MSG_DONTWAIT,
eventfds are read with RWF_NOWAIT, and the rest (writing to pipes, emptying pipes and sockets) is
done in threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, Generic, TypeVar

import trio

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.system.aside import ASIDE, Chore, is_eventfd, is_pipe, is_unix_socket, send_now
from vconfs.system.eventfds import empty_eventfd, is_semaphore, raiser

K = TypeVar("K")

_ONE: Final = (1).to_bytes(8, "little")
_READ_SIZE: Final = 1 << 12
#: Seconds between two tries to get a descriptor.
_PAUSE: Final = 0.1


def check_notifier(fd: int) -> None:
    """Check that the peer's descriptor is of a kind that can notify.

    Raise RemoteProtocolError if it is of another kind, like a file, or if it is an eventfd used as
    a semaphore, because one read does not empty that.
    """
    if is_eventfd(fd):
        if is_semaphore(fd):
            raise RemoteProtocolError("a notification descriptor is a semaphore")
    elif not (is_pipe(fd) or is_unix_socket(fd)):
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
    """The descriptors by which the peer notifies us, each with a key for its meaning.

    While `run` runs, `told` is called with the key after a notification, or after several.
    """

    def __init__(self, told: Callable[[K], None]) -> None:
        self._told = told
        self._listeners: dict[int, _Listener[K]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Listen to the descriptors until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                for listener in self._listeners.values():
                    self._nursery.start_soon(listener.run, self._told)
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for fd in self._listeners:
                trio.lowlevel.notify_closing(fd)

    def add(self, fd: int, key: K) -> None:
        """Listen to `fd`, which the caller has checked, and removes before it closes it."""
        self._listeners[fd] = listener = _Listener(fd, key)
        if self._nursery is not None:
            self._nursery.start_soon(listener.run, self._told)

    def remove(self, fd: int) -> None:
        """Listen to `fd` no longer."""
        self._listeners.pop(fd).scope.cancel()
        # Trio's epoll set would keep it: after we have closed it, the peer still has it open.
        trio.lowlevel.notify_closing(fd)


class _Listener(Generic[K]):
    """The task that listens to one descriptor."""

    def __init__(self, fd: int, key: K) -> None:
        self.scope = trio.CancelScope()
        self._fd = fd
        self._key = key
        self._is_eventfd = is_eventfd(fd)

    async def run(self, told: Callable[[K], None]) -> None:
        """Call `told` after each notification, until cancelled or the peer has closed its end."""
        with self.scope:
            while not self._is_removed and await self._take_notification():
                told(self._key)

    @property
    def _is_removed(self) -> bool:
        """True after `Notices.remove`: the number can be another descriptor's by now.

        The task can still have a turn then, for a notification that came before.
        """
        return self.scope.cancel_called

    async def _take_notification(self) -> bool:
        """Wait for a notification. Return False if there are no more."""
        await trio.lowlevel.wait_readable(self._fd)
        if self._is_removed:
            return False
        if self._is_eventfd:
            empty_eventfd(self._fd)
            return True
        return await self._empty() and not self._is_removed

    async def _empty(self) -> bool:
        """Read what is in a pipe or socket. Return False at its end."""
        while True:
            try:
                own = os.dup(self._fd)
            except OSError:  # no descriptor is left for now
                await trio.sleep(_PAUSE)
            else:
                return await ASIDE.run(partial(_empty_and_close, own))


def _empty_and_close(fd: int) -> bool:
    try:
        os.set_blocking(fd, False)
        return bool(os.read(fd, _READ_SIZE))
    except BlockingIOError:  # the peer has read it
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


class Told(Generic[K]):
    """The keys of notifications until a task takes them."""

    def __init__(self) -> None:
        self._keys: set[K] = set()
        self._some = trio.Event()

    def add(self, key: K) -> None:
        """Add a key, unless it waits to be taken already."""
        self._keys.add(key)
        self._some.set()

    async def take(self) -> set[K]:
        """Wait until there are keys, and return all."""
        await self._some.wait()
        keys, self._keys, self._some = self._keys, set(), trio.Event()
        return keys

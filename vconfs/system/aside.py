"""Threads beside the event loop, for calls that a peer can block.

A descriptor that a peer gave us can be anything: a file of a FUSE file system whose server never
answers, a socket that lingers, a pipe that another process holds locked. Closing it or writing to
it can take for ever, even with O_NONBLOCK. A thread blocked like this cannot be ended. There are
never more than `_THREADS` of them, and while many calls wait, no peer that could send more
descriptors is let in (see `Aside.room`).
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import trio

from vconfs.system._threads import STARTER

T = TypeVar("T")

log: Final = logging.getLogger(__name__)

_THREADS: Final = 16
#: While this many calls wait for a thread, no more descriptors are accepted.
_FULL: Final = 64
#: Seconds between checks if there are fewer.
_LOOK: Final = 0.1
_EVENTFD: Final = "anon_inode:[eventfd]"
_PIPE: Final = "pipe:["
_SO_DOMAIN: Final = 39  # asm-generic/socket.h; Python has no name for it
_LIBC: Final = ctypes.PyDLL(None, use_errno=True)  # for calls that do not wait


class Aside:
    """A set of threads that make calls. The process does not wait for the calls when it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], object]] = deque()
        self._threads = 0
        self._warned = False

    @property
    def is_full(self) -> bool:
        """True if too many calls wait to accept more descriptors."""
        return len(self._calls) >= _FULL

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in a thread as soon as one is free. Ignore an OSError that it raises."""
        with self._lock:
            self._calls.append(function)
            if self._threads == _THREADS:
                return
            self._threads += 1
        try:
            STARTER.start(self._run)
        except OSError:  # the system has no more threads: the existing ones take the call
            with self._lock:
                self._threads -= 1

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function in a thread, and return its result. It must raise nothing.

        If cancelled, the call is still made.
        """
        token, ended = trio.lowlevel.current_trio_token(), trio.Event()
        results: list[T] = []

        def call() -> None:
            results.append(function())
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(ended.set)

        self.call(call)
        await ended.wait()
        return results[0]

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._threads -= 1
                    return
                function = self._calls.popleft()
            with suppress(OSError):
                function()
            del function

    async def room(self) -> None:
        """Wait until few enough calls wait to accept descriptors again."""
        while self.is_full:
            if not self._warned:
                self._warned = True
                log.warning("descriptors of peers cannot be closed, new ones have to wait")
            await trio.sleep(_LOOK)


#: The only one of this process.
ASIDE: Final = Aside()


class Chore:
    """A call on a peer's descriptor, made in a thread, and repeated if requested meanwhile."""

    def __init__(self, fd: int, function: Callable[[int], object]) -> None:
        self._fd = fd
        self._function = function
        self._wanted = False
        self._busy = False

    def ask(self) -> None:
        """Request the call. Raise OSError if no descriptor is left for it."""
        self._wanted = True
        if not self._busy:
            self._busy = True
            ASIDE.call(partial(self._run, os.dup(self._fd)))

    def _run(self, fd: int) -> None:
        """Make the call with a duplicate descriptor, as the peer's may be closed meanwhile."""
        try:
            while self._wanted:
                self._wanted = False
                with suppress(OSError):
                    self._function(fd)
                self._busy = False
                if self._wanted:  # requested meanwhile; two threads making the call do no harm
                    self._busy = True
        finally:
            os.close(fd)


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Close descriptors that a peer gave us, without waiting."""
    for fd in descriptors:
        if is_eventfd(fd) or is_memory(fd):
            os.close(fd)
        else:
            ASIDE.call(partial(os.close, fd))


def is_eventfd(fd: int) -> bool:
    """True if a descriptor is an eventfd. Never blocks, whatever the descriptor is."""
    return _name(fd) == _EVENTFD


def is_pipe(fd: int) -> bool:
    """True if a descriptor is an end of an unnamed pipe. Never blocks."""
    return _name(fd).startswith(_PIPE)


def _name(fd: int) -> str:
    # The path of a file begins with a slash, so no file can have one of these names.
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def is_memory(fd: int) -> bool:
    """True if a descriptor is a file in memory (memfd, tmpfs, hugetlbfs). Never blocks.

    Only such files have seals, and the kernel reads these without asking the file system.
    """
    return seals_of(fd) is not None


def seals_of(fd: int) -> int | None:
    """Return the seals of a file in memory, or None if the descriptor is something else."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None


def is_unix_socket(fd: int) -> bool:
    """True if a descriptor is a unix socket. Never blocks."""
    domain, size = ctypes.c_int(), ctypes.c_uint(ctypes.sizeof(ctypes.c_int))
    into = ctypes.byref(domain), ctypes.byref(size)
    # Python's socket would first get the address, which has to wait if a TCP socket is locked.
    failed = _LIBC.getsockopt(fd, socket.SOL_SOCKET, _SO_DOMAIN, *into)
    return not failed and domain.value == socket.AF_UNIX


def send_now(fd: int, data: bytes) -> None:
    """Send to a unix socket what it takes now. Raise OSError if it takes nothing."""
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    if _LIBC.send(fd, data, len(data), flags) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

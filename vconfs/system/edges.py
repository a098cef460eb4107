"""Waiting for descriptors in ways that trio does not offer, by an epoll set in a thread.

Trio waits until a descriptor is readable or writable. We also need to know that it hung up while it
stays readable, that its state has changed once more, or that one of several is ready.

An epoll set inside of trio's could tell, but must not: Linux has one lock for all nested sets, and
holds it while it asks a file for its state. A program that puts a set with a port's file into
another set holds that lock while it waits for our answer. If we nested a set at that moment, we
would wait for the lock, and neither would go on. So no set of a daemon is inside of another one: a
thread waits for this one, and calls back in the event loop.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, Self

import trio

from vconfs.system._threads import STARTER
from vconfs.system.descriptors import owned

_Changed = Callable[[int], object]


class _EpollThread:
    """The set of one event loop, and the thread that waits for it while something is in the set.

    Raise OSError if there is no descriptor or no thread for it.
    """

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._calls: dict[int, _Changed] = {}
        self._lock = threading.Lock()
        self._changed: dict[int, int] = {}  # descriptor -> the events that were not reported yet
        with ExitStack() as opened:
            self._epoll = opened.enter_context(select.epoll())
            self._end = os.eventfd(0, os.EFD_CLOEXEC)
            opened.callback(os.close, self._end)
            self._epoll.register(self._end, select.EPOLLIN)
            STARTER.start(self._wait)
            opened.pop_all()

    def add(self, fd: int, mask: int, changed: _Changed) -> None:
        """Call `changed` whenever a descriptor gets one of the events. Raise OSError."""
        self._epoll.register(fd, mask | select.EPOLLET)
        self._calls[fd] = changed

    def remove(self, fd: int) -> None:
        """Undo `add`. A later descriptor with this number may get a call too many."""
        del self._calls[fd]
        self._epoll.unregister(fd)

    @property
    def is_idle(self) -> bool:
        """True if nothing is in the set."""
        return not self._calls

    def end(self) -> None:
        """End the thread."""
        os.eventfd_write(self._end, 1)

    def _wait(self) -> None:
        with self._epoll:
            while True:
                events = dict(self._epoll.poll())
                if self._end in events:
                    break
                with self._lock:
                    for fd, mask in events.items():
                        self._changed[fd] = self._changed.get(fd, 0) | mask
                with suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._report, idempotent=True)
        os.close(self._end)

    def _report(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, {}
        for fd, mask in changed.items():
            if fd in self._calls:
                self._calls[fd](mask)


_THREAD: Final = trio.lowlevel.RunVar[_EpollThread | None]("vconfs.system.edges", None)


@contextmanager
def _thread() -> Iterator[_EpollThread]:
    thread = _THREAD.get() or _EpollThread()
    _THREAD.set(thread)
    try:
        yield thread
    finally:
        if thread.is_idle:
            _THREAD.set(None)
            thread.end()


@contextmanager
def watching_edges(fd: int, mask: int, changed: Callable[[int], object]) -> Iterator[None]:
    """Call `changed` with the events that a descriptor gets during the block, and first has.

    They are those of `mask`, and always EPOLLHUP and EPOLLERR. An event that stays is reported
    once, and one that was there for a moment may be reported later. Raise OSError if that is
    impossible: PermissionError if the descriptor is a file, which has no events.
    """
    with _thread() as thread, owned(os.dup(fd)) as own:  # one can be in the set once only
        thread.add(own, mask, changed)
        try:
            yield
        finally:
            thread.remove(own)


class Watch:
    """Several descriptors, of which one is waited for; close it before them.

    `wanted` has a mask of events for each; EPOLLHUP and EPOLLERR are always among them. Raise
    OSError like `watching_edges`.
    """

    def __init__(self, wanted: Mapping[int, int]) -> None:
        self._poll = select.poll()
        self._changes = trio.lowlevel.ParkingLot()
        with ExitStack() as edges:
            for fd, mask in wanted.items():
                self._poll.register(fd, mask)
                edges.enter_context(watching_edges(fd, mask, lambda _: self._changes.unpark_all()))
            self._edges = edges.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer."""
        self._edges.close()

    async def wait(self) -> None:
        """Wait until one of the descriptors has one of its events; several tasks may wait."""
        await trio.lowlevel.checkpoint()
        while not self._poll.poll(0):
            await self._changes.park()


async def wait_hang_up(fd: int) -> None:
    """Wait until a descriptor reports hang-up or error, whatever else it reports.

    Raise OSError like `watching_edges`.
    """
    with Watch({fd: 0}) as watch:
        await watch.wait()

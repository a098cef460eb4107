"""Watching files and folders with inotify.

A user may have few inotify instances (usually 128), so one instance serves everything that an
event loop watches. One of the waiting tasks reads for all: it wakes the tasks whose files have
changed, and hands the reading on to another task when it stops.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import IntFlag
from functools import partial
from typing import Final

import trio
from attrs import define, field

from vconfs.system.aside import ASIDE
from vconfs.system.descriptors import owned

_MASK_ADD: Final = 0x2000_0000  # sys/inotify.h: adds to the events watched already
_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, and the length of the name
_READ_SIZE: Final = 1 << 14
#: Seconds that an instance without watches is kept, to be used again.
_KEEP: Final = 1.0
_libc = ctypes.CDLL(None, use_errno=True)


class Change(IntFlag):
    """The events that can be watched (sys/inotify.h)."""

    ATTRIBUTES = 0x4
    OPENED = 0x20
    MOVED_FROM = 0x40
    MOVED_TO = 0x80
    CREATED = 0x100
    DELETED = 0x200
    DELETED_SELF = 0x400
    MOVED_SELF = 0x800


#: The path no longer leads to what is watched.
_GONE: Final = Change.DELETED_SELF | Change.MOVED_SELF


@define(eq=False)
class Changes:
    """The watch of one file or folder. One task at a time may wait."""

    _inotify: _Inotify
    _wanted: Change
    happened: bool = False  # True since the first change after the owner set it to False
    #: True once the path no longer leads to what is watched, if that is one of the wanted kinds.
    gone: bool = False
    _woken: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    async def wait(self) -> None:
        """Wait until `happened` is true. Return at once if it is already."""
        inotify = self._inotify
        inotify.waiting[self] = None
        try:
            while not self.happened:
                if inotify.is_read:
                    await self._woken.park()
                else:
                    await inotify.read()
        finally:
            del inotify.waiting[self]
            inotify.hand_on()

    def wake(self) -> None:
        """Make the waiting task check again."""
        self._woken.unpark_all()

    def take(self, what: int) -> None:
        """Take note of a change, if it is one of the wanted kinds."""
        if what & self._wanted:
            self.happened = True
            self.gone = self.gone or bool(what & self._wanted & _GONE)
            self.wake()


class _Inotify:
    """An inotify instance. Raise OSError if no more can be made."""

    def __init__(self) -> None:
        self.is_read = False
        self._retiring = False
        self.waiting: dict[Changes, None] = {}
        #: How many threads add a watch now.
        self.adding = 0
        #: By the number of the watch. A file that is watched twice has one watch.
        self.watched: dict[int, list[Changes]] = {}
        # Not by inotify_simple: its first use runs ldconfig, which would block the event loop.
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def retire(self) -> None:
        """Close the instance soon, unless it is used again.

        A thread closes it, because that can take half a second. In between it can be reused, so
        that watches that come and go do not use up the user's instances.
        """
        if not self._retiring:
            self._retiring = True
            trio.lowlevel.spawn_system_task(self._close_if_unused)

    async def _close_if_unused(self) -> None:
        try:
            await trio.sleep(_KEEP)
        finally:  # also at the end of the run
            self._retiring = False
            if not self.watched and not self.adding:
                _shared.set(None)
                ASIDE.call(partial(os.close, self._descriptor))

    def add(self, path: str, changes: Change) -> int:
        return _add_watch(self._descriptor, path, changes)

    async def add_aside(self, path: str, changes: Change) -> int:
        """Add a watch in a thread, which is given up if we are cancelled."""
        self.adding += 1
        try:
            call = partial(_add_watch_and_close, os.dup(self._descriptor), path, changes)
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True)
        finally:
            self.adding -= 1

    def remove(self, number: int, changes: Changes) -> None:
        self.watched[number].remove(changes)
        if not self.watched[number]:
            del self.watched[number]
            _libc.inotify_rm_watch(self._descriptor, number)

    async def read(self) -> None:
        """Wait for events, and pass them to the watches."""
        self.is_read = True
        try:
            await trio.lowlevel.wait_readable(self._descriptor)
        finally:
            self.is_read = False
        data = b""
        with suppress(BlockingIOError):
            data = os.read(self._descriptor, _READ_SIZE)
        while data:
            number, what, _, size = _EVENT.unpack_from(data)
            data = data[_EVENT.size + size :]
            self._tell(number, what)

    def _tell(self, number: int, what: int) -> None:
        if number < 0:  # events were lost: anything may have changed
            concerned, what = [one for some in self.watched.values() for one in some], ~0
        else:
            concerned = self.watched.get(number, [])
        for changes in concerned:
            changes.take(what)

    def hand_on(self) -> None:
        """Make another waiting task read."""
        if not self.is_read and self.waiting:
            next(iter(self.waiting)).wake()


_shared: trio.lowlevel.RunVar[_Inotify | None] = trio.lowlevel.RunVar("vconfs.system.inotify", None)


@contextmanager
def watching(path: str, wanted: Change) -> Iterator[Changes]:
    """Watch a file or folder while the block runs. Raise OSError if that is not possible."""
    with _used() as inotify, _watched(inotify, inotify.add(path, wanted), wanted) as changes:
        yield changes


@asynccontextmanager
async def watching_aside(path: str, wanted: Change) -> AsyncIterator[Changes]:
    """Like `watching`, for a path on any file system: also on one that does not answer, or our own.

    What happens to it before the block begins may not be reported.
    """
    with _used() as inotify:
        number = await inotify.add_aside(path, wanted)
        with _watched(inotify, number, wanted) as changes:
            yield changes


@contextmanager
def _used() -> Iterator[_Inotify]:
    inotify = _shared.get() or _Inotify()
    _shared.set(inotify)
    try:
        yield inotify
    finally:
        if not inotify.watched:
            inotify.retire()


@contextmanager
def _watched(inotify: _Inotify, number: int, wanted: Change) -> Iterator[Changes]:
    changes = Changes(inotify, wanted)
    inotify.watched.setdefault(number, []).append(changes)
    try:
        yield changes
    finally:
        inotify.remove(number, changes)


def _add_watch(descriptor: int, path: str, changes: Change) -> int:
    mask = int(changes) | _MASK_ADD
    return _checked(_libc.inotify_add_watch(descriptor, os.fsencode(path), mask))


def _add_watch_and_close(descriptor: int, path: str, changes: Change) -> int:
    with owned(descriptor):
        return _add_watch(descriptor, path, changes)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

"""Makes inotify tell of ports that come and go.

The kernel raises CREATE and DELETE in a directory only when somebody creates or removes a name
by a system call. So for each name that has come or gone, this process itself makes the call on
its own mount, from a worker thread. The file system recognises the thread (`is_me`): to it alone
a new name looks absent, and a removed one present, so that the kernel lets the call through; to
everybody else names come and go at once.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from vconfs.system.log_once import LogOnce

log = logging.getLogger(__name__)

#: So many announcements wait; inotify keeps no more for its readers either (max_queued_events).
_JOBS_MAX: Final = 1 << 14
#: What the file system pretends to the announcer that a name is: an inode, or "not there".
Pretence = int
_NOT_THERE: Final = 0
#: Does something to a name in an opened folder.
_Call = Callable[[bytes, int], None]


class Announcer:
    """Announces, in order, what `created`, `removed` and `changed` were told.

    The first argument of those says whether the name is in by-name/ (else in the mount's root).
    When a host changes its ports faster than can be announced, for long, some is left out.
    """

    #: The number of the mounted file system, like "0:42".
    file_system = ""

    def __init__(self) -> None:
        self._jobs: list[tuple[_Call, bool, bytes, Pretence | None]] = []
        self._more = trio.lowlevel.ParkingLot()
        self._running = False
        self._trouble = LogOnce(log)
        self._thread = 0
        self._pretence: tuple[bool, bytes, Pretence] | None = None

    def is_me(self, thread: int) -> bool:
        """Whether a request comes from the announcer's own thread."""
        return thread != 0 and thread == self._thread

    def pretends(self, by_name: bool, name: bytes, thread: int) -> Pretence | None:
        """What a name has to look like to this thread; None: like it is."""
        if self._pretence is None or not self.is_me(thread):
            return None
        where, what, pretence = self._pretence
        return pretence if (where, what) == (by_name, name) else None

    def created(self, by_name: bool, name: bytes, *, link: bool = False) -> None:
        """A name has come; it is a link if it is in by-name/, or if `link` says so."""
        self._add(_make_link if by_name or link else _make_file, by_name, name, _NOT_THERE)

    def removed(self, by_name: bool, name: bytes, was: int) -> None:
        """A name has gone; it was this inode."""
        self._add(_remove, by_name, name, was)

    def changed(self, name: bytes) -> None:
        """An attribute of a port's file is another."""
        self._add(_touch, False, name, None)

    async def run(self, mountpoint: Path) -> None:
        """Announce what comes from now on, below `mountpoint`."""
        self._running = True
        while True:
            if not self._jobs:
                await self._more.park()
            jobs, self._jobs = self._jobs, []
            for call, by_name, name, pretence in jobs:
                folder = mountpoint / "by-name" if by_name else mountpoint
                self._pretence = None if pretence is None else (by_name, name, pretence)
                await trio.to_thread.run_sync(
                    self._call, call, folder, name, abandon_on_cancel=True
                )

    def _call(self, call: _Call, folder: Path, name: bytes) -> None:
        self._thread = threading.get_native_id()
        # OSError: the name has come or gone again meanwhile, or the mount is ending.
        with suppress(OSError), _opened(folder) as descriptor:
            # Else our mount is not there any more, and this is somebody else's folder.
            if _file_system(descriptor) == self.file_system:
                call(name, descriptor)
        self._thread = 0

    def _add(self, call: _Call, by_name: bool, name: bytes, pretence: Pretence | None) -> None:
        if not self._running:
            return
        if len(self._jobs) < _JOBS_MAX:
            self._jobs.append((call, by_name, name, pretence))
            self._more.unpark()
        else:
            lost = "the ports change too fast: inotify is not told of all of it"
            self._trouble.warning("overrun", lost)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _file_system(descriptor: int) -> str:
    device = os.fstat(descriptor).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def _make_file(name: bytes, folder: int) -> None:
    os.mknod(name, stat.S_IFREG | 0o600, dir_fd=folder)


def _make_link(name: bytes, folder: int) -> None:
    os.symlink(b"announced", name, dir_fd=folder)


def _remove(name: bytes, folder: int) -> None:
    os.unlink(name, dir_fd=folder)


def _touch(name: bytes, folder: int) -> None:
    os.utime(name, dir_fd=folder)

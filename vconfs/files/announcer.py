"""Inotify events for ports that come and go.

The kernel raises CREATE and DELETE in a directory only when a process creates or removes a name
by a system call. So for each name that was added or removed, this process makes that call on its
own mount, from a worker thread. The file system recognises the thread (`is_me`) and shows it, and
no other process, a new name as absent and a removed name as present, so that the kernel lets the
call through. All other processes see names come and go at once.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Final

import trio

from vconfs.files.names import Place
from vconfs.system.descriptors import owned
from vconfs.system.log_once import LogOnce

log: Final = logging.getLogger(__name__)

#: The most announcements that wait; inotify queues no more for a reader (max_queued_events).
_JOBS_MAX: Final = 1 << 14
#: What the file system shows the announcer under a name: an inode, or `_NOT_THERE`.
Pretence = int
_NOT_THERE: Final = 0
#: A system call on a name in an open folder.
_Call = Callable[[bytes, int], None]


class Kind(Enum):
    """What a name belongs to."""

    FILE = "a port's file"
    LINK = "a symlink"
    FOLDER = "a folder"


class Announcer:
    """Announces, in order, the names passed to `created`, `removed` and `changed`.

    If a host changes its ports for long faster than they can be announced, some changes are left
    out.
    """

    #: The number of the mounted file system, like "0:42".
    file_system = ""

    def __init__(self) -> None:
        self._jobs: list[tuple[_Call, Place, bytes, Pretence | None]] = []
        self._more = trio.lowlevel.ParkingLot()
        self._running = False
        self._trouble = LogOnce(log)
        self._thread = 0
        self._pretence: tuple[int, bytes, Pretence] | None = None

    def is_me(self, thread: int) -> bool:
        """True if a request comes from the announcer's own thread."""
        return thread != 0 and thread == self._thread

    def pretends(self, folder: int, name: bytes, thread: int) -> Pretence | None:
        """Return the inode to fake for this thread, `_NOT_THERE`, or None for the real entry."""
        if self._pretence is None or not self.is_me(thread):
            return None
        where, what, pretence = self._pretence
        return pretence if (where, what) == (folder, name) else None

    def created(self, place: Place, name: bytes, kind: Kind = Kind.FILE) -> None:
        """Announce a new name."""
        make = {Kind.FILE: _make_file, Kind.LINK: _make_link, Kind.FOLDER: _make_folder}
        self._add(make[kind], place, name, _NOT_THERE)

    def removed(self, place: Place, name: bytes, was: int, kind: Kind = Kind.FILE) -> None:
        """Announce that a name is gone; `was` is the inode that it had."""
        self._add(_remove_folder if kind is Kind.FOLDER else _remove, place, name, was)

    def changed(self, place: Place, name: bytes) -> None:
        """Announce that an attribute of a file or a folder has changed."""
        self._add(_touch, place, name, None)

    async def run(self, mountpoint: Path) -> None:
        """Announce the changes from now on, below `mountpoint`."""
        self._running = True
        while True:
            if not self._jobs:
                await self._more.park()
            jobs, self._jobs = self._jobs, []
            for call, place, name, pretence in jobs:
                folder = mountpoint / os.fsdecode(place.path)
                self._pretence = None if pretence is None else (place.inode, name, pretence)
                await trio.to_thread.run_sync(
                    self._call, call, folder, name, abandon_on_cancel=True
                )

    def _call(self, call: _Call, folder: Path, name: bytes) -> None:
        self._thread = threading.get_native_id()
        # OSError: the name was added or removed again meanwhile, or the mount is ending.
        how = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        with suppress(OSError), owned(os.open(folder, how)) as descriptor:
            # Otherwise our mount is gone, and this is a folder of another file system.
            if _file_system(descriptor) == self.file_system:
                call(name, descriptor)
        self._thread = 0

    def _add(self, call: _Call, place: Place, name: bytes, pretence: Pretence | None) -> None:
        if not self._running:
            return
        if len(self._jobs) < _JOBS_MAX:
            self._jobs.append((call, place, name, pretence))
            self._more.unpark()
        else:
            lost = "the ports change too fast: inotify does not report every change"
            self._trouble.warning("overrun", lost)


def _file_system(descriptor: int) -> str:
    device = os.fstat(descriptor).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def _make_file(name: bytes, folder: int) -> None:
    os.mknod(name, stat.S_IFREG | 0o600, dir_fd=folder)


def _make_link(name: bytes, folder: int) -> None:
    os.symlink(b"announced", name, dir_fd=folder)


def _make_folder(name: bytes, folder: int) -> None:
    os.mkdir(name, dir_fd=folder)


def _remove(name: bytes, folder: int) -> None:
    os.unlink(name, dir_fd=folder)


def _remove_folder(name: bytes, folder: int) -> None:
    os.rmdir(name, dir_fd=folder)


def _touch(name: bytes, folder: int) -> None:
    os.utime(name, dir_fd=folder)

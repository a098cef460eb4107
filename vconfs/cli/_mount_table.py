"""The mounts of vconfs, and whether they answer."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from threading import Thread
from typing import Final, TypeVar

from vconfs.errors import VconfsError
from vconfs.files.names import CONNECTED_ATTRIBUTE, GUESTS_ATTRIBUTE, PID_ATTRIBUTE
from vconfs.system.mountinfo import read_mounts

T = TypeVar("T")

_TYPE: Final = "fuse.vconfs"
#: Seconds that each mount has to answer when all mounts are asked.
_PATIENCE: Final = 1.0
#: Seconds that a single mount has to answer.
_PATIENCE_WITH_ONE: Final = 5.0


class MountState(Enum):
    """The state of a mount, as far as this process can see it."""

    ALIVE = "its daemon answers"
    FOREIGN = "it is mounted by another user, who lets only that user in"
    DEAD = "its daemon has ended"
    SILENT = "its daemon does not answer: it is stopped, or busy"


def all_mounts() -> list[Path]:
    """Return all mountpoints of vconfs, with or without a running daemon."""
    return [Path(os.fsdecode(found.place)) for found in read_mounts() if found.type == _TYPE]


def in_time(what: str | Path, call: Callable[[], T]) -> T:
    """Return what `call` returns; raise VconfsError if the mount of `what` does not answer.

    A call into a mount whose daemon is stopped does not return, and cannot be interrupted.
    """
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            result = call()
            outcome.append(lambda: result)
        except BaseException as error:
            failed = error

            def fail() -> T:
                raise failed

            outcome.append(fail)

    calling = Thread(target=run, daemon=True)
    calling.start()
    calling.join(_PATIENCE_WITH_ONE)
    if not outcome:
        raise VconfsError(f"{what} does not answer: the daemon of the mount is stopped, or busy")
    return outcome[0]()


def port_folders(mountpoint: Path) -> list[Path]:
    """Return the folders of a mount that have ports: itself or, with guests, each guest's.

    Raise OSError if it is not a mount, and not the folder of a guest.
    """
    os.getxattr(mountpoint, PID_ATTRIBUTE)
    try:
        os.getxattr(mountpoint, GUESTS_ATTRIBUTE)
    except OSError:
        return [mountpoint]
    names = sorted(name for name in os.listdir(mountpoint) if not name.startswith("."))
    return [mountpoint / name for name in names]


def is_guest_folder(folder: Path) -> bool:
    """True if this is the folder of a guest in a mount that has one for each."""
    try:
        os.getxattr(folder, CONNECTED_ATTRIBUTE)
    except OSError:
        return False
    return True


def answering(folders: Sequence[Path]) -> list[Path]:
    """Return the mounts whose daemon answers."""
    found = states(folders)
    return [folder for folder in folders if found[folder] is MountState.ALIVE]


def states(folders: Sequence[Path]) -> Mapping[Path, MountState]:
    """Return the state of each mount; a call into a mount of a stopped daemon never ends."""
    found = dict.fromkeys(folders, MountState.SILENT)

    def ask(folder: Path) -> None:
        try:
            os.getxattr(folder, PID_ATTRIBUTE)
        except PermissionError:
            found[folder] = MountState.FOREIGN
        except OSError:
            found[folder] = MountState.DEAD
        else:
            found[folder] = MountState.ALIVE

    asking = [Thread(target=ask, args=[folder], daemon=True) for folder in folders]
    for thread in asking:
        thread.start()
    deadline = time.monotonic() + _PATIENCE
    for thread in asking:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


def why(path: Path, error: OSError) -> VconfsError:
    """Return the error of a call on `path`. It has the way out if the mount has no daemon left."""
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        absolute = Path(os.path.abspath(path))
        mount = next((it for it in all_mounts() if absolute.is_relative_to(it)), path)
        return VconfsError(
            f"the daemon of {mount} has ended: `vconfs umount {mount}`, then mount again"
        )
    return VconfsError(f"{path}: {error.strerror}")

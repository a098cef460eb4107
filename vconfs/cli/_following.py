"""Reading a mount's files without end: its events, and its tap."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vconfs.cli._mount_table import in_time, why
from vconfs.errors import VconfsError


@contextmanager
def opened_file(mountpoint: Path, name: bytes, mode: int = os.O_RDONLY) -> Iterator[int]:
    """Open a file of a mount while the block runs.

    Raise VconfsError if it is not a mount, or PermissionError if we may not open the file.
    """
    try:
        path = mountpoint / os.fsdecode(name)
        file = in_time(mountpoint, lambda: os.open(path, mode | os.O_NONBLOCK))
    except FileNotFoundError:
        raise VconfsError(f"{mountpoint} is not a vconfs mount") from None
    except PermissionError:
        raise
    except OSError as error:
        if error.errno == errno.ENFILE:
            raise VconfsError(f"{path}: too many programs have it open") from None
        raise why(mountpoint, error) from None
    try:
        yield file
    finally:
        os.close(file)


def read_chunks(file: int, deadline: float | None = None, late: str = "") -> Iterator[bytes]:
    """Yield what comes in an open file, until the mount is unmounted.

    Raise VconfsError with the message `late` after the deadline.
    """
    changes = select.poll()
    changes.register(file, select.POLLIN)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not changes.poll(left) and left is not None:
            raise VconfsError(late)
        try:
            data = os.read(file, 1 << 16)
        except BlockingIOError:
            continue
        except OSError:
            return  # unmounted by force
        if not data:
            return
        yield data

"""The names of other processes."""

from __future__ import annotations

import os
from typing import Final

from vconfs.syntax.printable import printable
from vconfs.system.descriptors import owned

_SIZE_MAX: Final = 1 << 12
_GROUP: Final = b"\nTgid:\t"


def process_of(thread: int) -> tuple[int, bytes]:
    """Return the process ID and the command of a thread's process; no command if it has ended.

    The command is made printable and has no comma, so that processes can be listed.
    """
    try:
        status = _read(f"/proc/{thread}/status")
        _, _, rest = status.partition(_GROUP)
        pid = int(rest[: rest.index(b"\n")])
        command = _read(f"/proc/{pid}/comm")[:-1]
    except (OSError, ValueError):
        return thread, b""
    return pid, printable(command).replace(",", "\\x2c").encode()


def _read(path: str) -> bytes:
    with owned(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as file:
        return os.read(file, _SIZE_MAX)

"""Standard input, output and error, which the caller of a command may have closed.

The next file that is opened would get a closed stream's number, and what is then printed, or done
to "standard input", would affect that file: a FUSE device, a socket, a log. So before anything
else is opened, /dev/null is opened as each closed stream.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

_NAMES: Final = ("input", "output", "error")
#: The descriptors that were closed when we started.
_closed: Final[set[int]] = set()
#: Held while a port or a stream uses standard input and output, as a process has only one pair.
_claim: Final = threading.Lock()


def open_missing_streams() -> None:
    """Open /dev/null as each closed one of the three. A command calls this first."""
    for number in range(len(_NAMES)):
        try:
            os.fstat(number)
        except OSError:
            _open_null(number)
            _closed.add(number)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:  # Python found the descriptor closed
            file = os.fdopen(number, mode, closefd=False)
            setattr(sys, name, file)
            setattr(sys, f"__{name}__", file)


def _open_null(number: int) -> None:
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError as error:  # if standard error is closed, only the exit code shows it
        sys.exit(f"vconfs: {os.devnull}: {error.strerror}")
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)


def closed_streams(*numbers: int) -> str:
    """Return which streams, by default input and output, were closed at the start, as a message.

    Return "" if none was.
    """
    found = [_NAMES[number] for number in sorted(_closed.intersection(numbers or (0, 1)))]
    if not found:
        return ""
    return f"standard {' and '.join(found)} {'is' if len(found) == 1 else 'are'} closed"


def claim() -> str:
    """Reserve standard input and output. Return "", or why they cannot be used."""
    if closed := closed_streams():
        return closed
    return "" if _claim.acquire(blocking=False) else "standard input and output are in use already"


def release() -> None:
    """Release standard input and output for other users."""
    _claim.release()

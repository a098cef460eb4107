"""Standard input, output and error, which a caller may have closed.

A file that is opened next would get such a number, and what is then printed, or done to "standard
input", would hit that file: a FUSE device, a socket, a log. So before anything is opened,
/dev/null takes the place of each one that is closed.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

_NAMES: Final = ("input", "output", "error")
#: The numbers that were closed when we started.
_closed: Final[set[int]] = set()
#: Held while input and output carry a port or a stream: there is one pair in a process.
_claim: Final = threading.Lock()


def open_missing_streams() -> None:
    """Open /dev/null as each of the three that is closed; the first thing that a command does."""
    for number in range(len(_NAMES)):
        try:
            os.fstat(number)
        except OSError:
            _open_null(number)
            _closed.add(number)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:  # as Python has it when it finds the number closed
            file = os.fdopen(number, mode, closefd=False)
            setattr(sys, name, file)
            setattr(sys, f"__{name}__", file)


def _open_null(number: int) -> None:
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError as error:  # nothing can be said with standard error closed: the code is left
        sys.exit(f"vconfs: {os.devnull}: {error.strerror}")
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)


def closed_streams(*numbers: int) -> str:
    """Say which of these, by default input and output, were closed at the start; "" if none."""
    found = [_NAMES[number] for number in sorted(_closed.intersection(numbers or (0, 1)))]
    if not found:
        return ""
    return f"standard {' and '.join(found)} {'is' if len(found) == 1 else 'are'} closed"


def claim() -> str:
    """Take standard input and output for one user; return why not, or "" if they are free."""
    if closed := closed_streams():
        return closed
    return "" if _claim.acquire(blocking=False) else "standard input and output are in use already"


def release() -> None:
    """Let another user have standard input and output."""
    _claim.release()

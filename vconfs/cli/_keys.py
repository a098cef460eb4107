"""Keys that the user presses, one at a time and without Enter."""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_STDIN: Final = 0


class Keys:
    """The keys of standard input: a character each, or one of the names below."""

    UP: Final = "up"
    DOWN: Final = "down"
    PAGE_UP: Final = "page up"
    PAGE_DOWN: Final = "page down"
    _SEQUENCES: Final = {
        b"\033[A": UP,
        b"\033OA": UP,
        b"\033[B": DOWN,
        b"\033OB": DOWN,
        b"\033[5~": PAGE_UP,
        b"\033[6~": PAGE_DOWN,
    }

    def __init__(self) -> None:
        self._typed = b""

    def next(self, seconds: float) -> str | None:
        """Return the next key if one is pressed within `seconds`. The end of input is "q"."""
        if not self._typed:
            ready, _, _ = select.select([_STDIN], [], [], max(0.0, seconds))
            if not ready:
                return None
            self._typed = os.read(_STDIN, 64) or b"q"
        for sequence, key in self._SEQUENCES.items():
            if self._typed.startswith(sequence):
                self._typed = self._typed.removeprefix(sequence)
                return key
        first, self._typed = self._typed[:1], self._typed[1:]
        return first.decode(errors="replace")


@contextmanager
def reading_keys() -> Iterator[Keys]:
    """Read keys while the block runs. Ctrl-C still interrupts."""
    before = termios.tcgetattr(_STDIN)
    tty.setcbreak(_STDIN)
    try:
        yield Keys()
    finally:
        termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)

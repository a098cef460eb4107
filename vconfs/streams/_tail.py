"""Whose data the last bytes are that a stream has taken.

A kernel says how many bytes the other side has not read, not what they are. This finds out: it
remembers the frames that were sent last, at least those that may be unread.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

#: Remembered frames are checked when there are this many, and twice as many as were unread then.
_FRAMES: Final = 256


class Tail:
    """The frames that a stream has taken last; `unread` says how many bytes may be unread."""

    def __init__(self, unread: Callable[[], int]) -> None:
        self._unread = unread
        #: Size of the whole frame, its port or None, and how many bytes of the port's data it has.
        self._frames: deque[tuple[int, int | None, int]] = deque()
        self._size = 0
        self._check_at = _FRAMES

    def sent(self, size: int, port: int | None, data: int) -> None:
        """Add a frame that the stream has taken completely."""
        self._frames.append((size, port, data))
        self._size += size
        if len(self._frames) >= self._check_at:
            self._forget_read()

    def last(self, size: int, *, whole: bool = True) -> Counter[int]:
        """Return, by port, how much data is in the last `size` bytes of the stream.

        With `whole`, all data of a frame counts of which only a part is in them: that frame has not
        arrived.
        """
        found: Counter[int] = Counter()
        for frame_size, port, data in reversed(self._frames):
            if size <= 0:
                break
            if port is not None and data:
                found[port] += data if whole else min(data, size)
            size -= frame_size
        return found

    def _forget_read(self) -> None:
        unread = self._unread()
        while self._frames and self._size - self._frames[0][0] >= unread:
            self._size -= self._frames.popleft()[0]
        self._check_at = max(_FRAMES, 2 * len(self._frames))

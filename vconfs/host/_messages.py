"""Guest data by whole write requests, for chardevs that keep their boundaries."""

from __future__ import annotations

from collections import deque
from typing import Final

#: The longest write request whose boundaries are kept; longer ones come in pieces of this size.
MESSAGE_MAX: Final = 1 << 20
#: What a queued message counts in addition to its bytes, so that many tiny ones are bounded, too.
_COST: Final = 64
#: What a message takes on its way to us in addition to its bytes, at least: a header.
UNDER_WAY: Final = 12


class MessageQueue:
    """The messages that one port's chardev has not taken yet."""

    def __init__(self) -> None:
        #: The messages that are complete.
        self.whole: deque[bytes] = deque()
        #: Bytes in the queue.
        self.size = 0
        self._partial = bytearray()  # the message that is still arriving
        self._missing = 0  # how many bytes of it are missing

    @property
    def cost(self) -> int:
        """The queue's size as it counts towards a limit."""
        return self.size + _COST * len(self.whole)

    def put(self, data: memoryview, size: int | None) -> None:
        """Add a piece of a message, or a whole one; `size` is that of `events.Data`."""
        if size is None:
            self._add(bytes(data))
            return
        if size:
            self._end()
            self._missing = size
        self._partial += data
        self._missing -= len(data)
        self.size += len(data)
        if self._missing <= 0 or len(self._partial) >= MESSAGE_MAX:
            self._end()

    def take(self) -> bytes:
        """Remove and return the oldest complete message; there must be one."""
        message = self.whole.popleft()
        self.size -= len(message)
        return message

    def put_back(self, message: bytes) -> None:
        """Put a message that was taken back at the front."""
        self.whole.appendleft(message)
        self.size += len(message)

    def abandon(self) -> int:
        """Drop a message whose rest will not arrive; return how many bytes that were."""
        dropped = len(self._partial)
        self._partial.clear()
        self._missing = 0
        self.size -= dropped
        return dropped

    def clear(self) -> int:
        """Drop everything; return how many bytes that were."""
        dropped = self.size
        self.whole.clear()
        self._partial.clear()
        self._missing = self.size = 0
        return dropped

    def _end(self) -> None:
        if self._partial:
            self.size -= len(self._partial)
            self._add(bytes(self._partial))
            self._partial.clear()

    def _add(self, message: bytes) -> None:
        if message:
            self.whole.append(message)
            self.size += len(message)

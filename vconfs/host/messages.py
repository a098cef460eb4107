"""Guest data by whole write requests, for chardevs that keep their boundaries."""

from __future__ import annotations

from collections import deque
from typing import Final

#: The longest write request whose boundaries are kept; longer ones come in pieces of this size.
MESSAGE_MAX: Final = 1 << 20
#: What a queued message costs beside its bytes, so that a flood of tiny ones is bounded too.
_COST: Final = 64


class MessageQueue:
    """What one port's chardev has not taken yet, message by message."""

    def __init__(self) -> None:
        #: The messages that are all here.
        self.whole: deque[bytes] = deque()
        #: What all of it costs, in bytes.
        self.size = 0
        self._partial = bytearray()  # the message that is coming
        self._missing = 0  # bytes of it

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
        """Remove the oldest message, which there is."""
        message = self.whole.popleft()
        self.size -= len(message) + _COST
        return message

    def put_back(self, message: bytes) -> None:
        """Have a message come first that was taken."""
        self.whole.appendleft(message)
        self.size += len(message) + _COST

    def abandon(self) -> int:
        """Drop a message whose rest will not come; tell how many bytes of it there were."""
        dropped = len(self._partial)
        self._partial.clear()
        self._missing = 0
        self.size -= dropped
        return dropped

    def clear(self) -> int:
        """Drop everything; tell how many bytes that were."""
        dropped = self.size - _COST * len(self.whole)
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
        self.whole.append(message)
        self.size += len(message) + _COST

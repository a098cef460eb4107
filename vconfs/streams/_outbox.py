"""Frames that wait for a stream to take them, in the order in which they are sent.

There are two lanes. Urgent frames (control messages) go first; data waits in the second lane. But
the frames of one port never overtake each other, so that its hang-up comes after its data: while
frames of a port wait in the second lane, its urgent frames join them there. A frame of which the
stream has taken a part is always finished first.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from itertools import chain, islice
from typing import Final

from attrs import define

from vconfs.protocol.events import Buffer
from vconfs.streams._tail import Tail

#: The most frames offered to the stream at once; writev(2) takes at most 1024 pieces.
_FRAMES_MAX: Final = 256
#: Data of at least this many bytes gets a piece of its own, without a copy.
_LARGE: Final = 1 << 14


class OutgoingFrame:
    """A frame to send: its bytes in two parts, its port or None, and True if it is urgent.

    `size` is the number of its bytes, and `port_data` that of its port's data: 0 if it is urgent.
    """

    __slots__ = ("data", "head", "port", "port_data", "size", "urgent")

    def __init__(
        self, head: bytes, data: Buffer = b"", port: int | None = None, *, urgent: bool = False
    ) -> None:
        self.head = head
        self.data = data
        self.port = port
        self.urgent = urgent
        size = len(data)
        self.size: int = len(head) + size
        self.port_data: int = 0 if urgent else size


@define
class _Waiting:
    """A frame that waits, in pieces that do not change any more."""

    pieces: list[Buffer]
    port: int | None
    data: int  # bytes of its port's data
    size: int


class Outbox:
    """The frames that wait for one stream.

    `unread` returns how many bytes that the stream has taken are not read yet.
    """

    def __init__(self, unread: Callable[[], int] = lambda: 0) -> None:
        #: The number of bytes that wait.
        self.size = 0
        #: By port, how many bytes of data are in frames that have not been sent completely.
        self.data: Counter[int] = Counter()
        self._begun: deque[Buffer] = deque()  # the rest of the frame that the stream is taking
        self._begun_frame: _Waiting | None = None
        self._tail = Tail(unread)
        self._urgent: deque[_Waiting] = deque()
        self._others: deque[_Waiting] = deque()
        self._ports: Counter[int] = Counter()  # by port, its frames in the second lane

    @property
    def has_urgent(self) -> bool:
        """True if there is an urgent frame of which the stream has taken nothing yet."""
        return bool(self._urgent)

    def put(self, frame: OutgoingFrame, sent: int = 0) -> None:
        """Add a frame, and copy what may change.

        `sent` is how many of its bytes the stream has taken already (first frame only).
        """
        waiting = _Waiting(_kept(frame, sent), frame.port, frame.port_data, frame.size)
        self.size += frame.size - sent
        if waiting.data and frame.port is not None:
            self.data[frame.port] += waiting.data
        if sent:
            self._begin(waiting)
        elif frame.urgent and frame.port not in self._ports:
            self._urgent.append(waiting)
        else:
            self._others.append(waiting)
            if frame.port is not None:
                self._ports[frame.port] += 1

    def passed(self, frame: OutgoingFrame) -> None:
        """Take note that the stream has taken all of a frame at once."""
        self._tail.sent(frame.size, frame.port, frame.port_data)

    def untaken(self, lost: int) -> Counter[int]:
        """Return, by port, how much data is here and in the last `lost` bytes of the stream.

        A frame counts until all of it has gone.
        """
        return self.data + self._tail.last(lost - self._begun_sent)

    def owed(self, unread: int) -> Counter[int]:
        """Like `untaken`, but count only the bytes that are left of a frame.

        So this becomes less whenever the other side reads.
        """
        owed = self.data + self._tail.last(unread - self._begun_sent, whole=False)
        frame = self._begun_frame
        if frame is not None and frame.port is not None and frame.data:
            gone = max(0, self._begun_sent - unread)
            owed[frame.port] -= min(gone, frame.data - 1)
        return owed

    @property
    def _begun_sent(self) -> int:
        """The number of bytes of the begun frame that the stream has taken."""
        frame = self._begun_frame
        return frame.size - sum(map(len, self._begun)) if frame is not None else 0

    def head(self) -> list[Buffer]:
        """Return the bytes to send next, in pieces."""
        waiting = (frame.pieces for frame in chain(self._urgent, self._others))
        return [*self._begun, *chain.from_iterable(islice(waiting, _FRAMES_MAX))]

    def remove(self, size: int) -> None:
        """Forget the next `size` bytes, which the stream has taken."""
        self.size -= size
        while size:
            if not self._begun:
                self._begin(self._next())
            piece = self._begun.popleft()
            if size < len(piece):
                self._begun.appendleft(memoryview(piece)[size:])
                return
            size -= len(piece)
            if not self._begun:
                self._gone()

    def _begin(self, frame: _Waiting) -> None:
        self._begun.extend(frame.pieces)
        self._begun_frame = frame

    def _gone(self) -> None:
        """Count the begun frame as sent completely."""
        frame, self._begun_frame = self._begun_frame, None
        assert frame is not None
        self._tail.sent(frame.size, frame.port, frame.data)
        if frame.data and frame.port is not None:
            self.data[frame.port] -= frame.data
            if not self.data[frame.port]:
                del self.data[frame.port]

    def _next(self) -> _Waiting:
        if self._urgent:
            return self._urgent.popleft()
        frame = self._others.popleft()
        if (port := frame.port) is not None:
            self._ports[port] -= 1
            if not self._ports[port]:
                del self._ports[port]
        return frame


def _kept(frame: OutgoingFrame, sent: int) -> list[Buffer]:
    """Return what is left of a frame after `sent` bytes, in pieces that do not change.

    Large bytes objects are not copied.
    """
    head = frame.head[sent:]
    data = memoryview(frame.data)[max(0, sent - len(frame.head)) :]
    if len(data) < _LARGE or not isinstance(data.obj, bytes):
        return [b"".join((head, data))]
    return [head, data] if head else [data]

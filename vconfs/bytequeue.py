"""Bytes that wait for a reader, with the places where one connection ended marked."""

from __future__ import annotations

from collections import deque

from vconfs.protocol.events import Buffer

#: Small pieces are gathered into chunks of this size, so that a flood of one-byte buffers
#: costs about as much memory as it has bytes.
_CHUNK = 1 << 16


class ByteQueue:
    """A first-in-first-out queue of bytes and hang-up marks.

    `take` never goes past a mark: what was sent before a hang-up and what comes after it stay
    apart, and the reader is shown the end of file that lies between.
    """

    __slots__ = ("_chunks", "_offset", "marks", "size")

    def __init__(self) -> None:
        self._chunks: deque[bytes | bytearray | None] = deque()  # None: a mark
        self._offset = 0  # bytes of the first chunk that are taken already
        self.size = 0
        self.marks = 0

    def put(self, data: Buffer) -> None:
        """Append a copy of `data`."""
        size = len(data)
        if not size:
            return
        self.size += size
        last = self._chunks[-1] if self._chunks else None
        if isinstance(last, bytearray) and len(last) + size <= _CHUNK:
            last += data
        else:
            self._chunks.append(bytearray(data) if size < _CHUNK // 2 else bytes(data))

    def take(self, size: int) -> list[Buffer]:
        """Remove up to `size` bytes, not past a mark, and give them in pieces."""
        pieces: list[Buffer] = []
        while size and self._chunks and (chunk := self._chunks[0]) is not None:
            rest = len(chunk) - self._offset
            if rest <= size:
                pieces.append(memoryview(chunk)[self._offset :] if self._offset else chunk)
                self._chunks.popleft()
                self._offset = 0
            else:
                rest = size
                piece = memoryview(chunk)[self._offset : self._offset + rest]
                # A copy: a bytearray that somebody has a view of could not grow any more.
                pieces.append(bytes(piece) if isinstance(chunk, bytearray) else piece)
                self._offset += rest
            size -= rest
            self.size -= rest
        return pieces

    @property
    def at_mark(self) -> bool:
        """Whether the next thing in the queue is a mark."""
        return bool(self._chunks) and self._chunks[0] is None

    def put_mark(self, *, always: bool = False) -> None:
        """Append a mark, unless the last thing in the queue is one; `always`: even then."""
        if always or not self._chunks or self._chunks[-1] is not None:
            self._chunks.append(None)
            self.marks += 1

    def take_mark(self) -> None:
        """Remove the mark at the head."""
        assert self.at_mark
        self._chunks.popleft()
        self.marks -= 1

    def clear(self) -> int:
        """Drop everything; tell how many bytes that were."""
        dropped = self.size
        self._chunks.clear()
        self._offset = self.size = self.marks = 0
        return dropped

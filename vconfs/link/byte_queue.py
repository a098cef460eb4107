"""Bytes that wait for a reader, with a mark where each connection ended."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from vconfs.protocol.events import Buffer

#: Small pieces are gathered into chunks of this size, so that a flood of one-byte buffers
#: uses about as much memory as it has bytes.
_CHUNK = 1 << 16
#: The memory that a mark uses: an entry in the queue, and the overhead of the chunk that it ends.
#: This is less than the size of the messages that cause a mark.
MARK_COST = 56


class Lent(Protocol):
    """A buffer that is lent to a queue."""

    def give_back(self) -> None:
        """Return the buffer to its owner, who can use it after the next `flush`."""

    def flush(self) -> None:
        """Let the owner use the buffers that were returned to it."""


class ByteQueue:
    """A first-in-first-out queue of bytes and hang-up marks.

    `take` never goes past a mark: data sent before a hang-up and data sent after it stay apart,
    and the reader sees the end of file between them.

    `lend` puts a large buffer in the queue without copying it. A caller of `take` first calls
    `give_back`, when it no longer uses the pieces that it took before.
    """

    __slots__ = ("_chunks", "_lent", "_offset", "marks", "size", "spent")

    def __init__(self) -> None:
        #: None is a mark. A memoryview is lent: `_lent` has each of these, in the same order.
        self._chunks: deque[bytes | bytearray | memoryview | None] = deque()
        self._lent: deque[Lent] = deque()
        #: The same for chunks that have been taken, until `give_back`.
        self.spent: list[Lent] = []
        self._offset = 0  # how many bytes of the first chunk have been taken
        self.size: int = 0
        self.marks: int = 0

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

    def lend(self, data: memoryview, lent: Lent) -> None:
        """Append `data` without a copy; it is given back when the queue no longer needs it."""
        self.size += len(data)
        self._chunks.append(data)
        self._lent.append(lent)

    def put_back(self, data: Buffer) -> None:
        """Put a copy of data that was taken back at the head of the queue."""
        if not len(data):
            return
        if self._offset:
            assert self._chunks[0] is not None
            self._chunks[0] = self._chunks[0][self._offset :]
            self._offset = 0
        self._chunks.appendleft(bytes(data))
        self.size += len(data)

    def give_back(self) -> None:
        """Give back the lent buffers that have been taken."""
        spent, self.spent = self.spent, []
        for lent in spent:
            lent.give_back()
        if spent:
            spent[-1].flush()

    def own(self) -> None:
        """Copy what is still lent and give the buffers back: their owner goes away."""
        for index, chunk in enumerate(self._chunks):
            if isinstance(chunk, memoryview):
                self._chunks[index] = bytes(chunk)
        self.spent += self._lent
        self._lent.clear()
        self.give_back()

    def take(self, size: int) -> list[Buffer]:
        """Remove up to `size` bytes, not past a mark, and return them in pieces."""
        pieces: list[Buffer] = []
        while size and self._chunks and (chunk := self._chunks[0]) is not None:
            rest = len(chunk) - self._offset
            if rest <= size:
                pieces.append(memoryview(chunk)[self._offset :] if self._offset else chunk)
                self._chunks.popleft()
                self._offset = 0
                if isinstance(chunk, memoryview):
                    self.spent.append(self._lent.popleft())
            else:
                rest = size
                piece = memoryview(chunk)[self._offset : self._offset + rest]
                # A copy, because a bytearray cannot grow while there is a view of it.
                pieces.append(bytes(piece) if isinstance(chunk, bytearray) else piece)
                self._offset += rest
            size -= rest
            self.size -= rest
        return pieces

    def peek(self, size: int) -> list[Buffer]:
        """Return what `take` would, and keep it in the queue.

        The pieces are valid until they are removed, and those that are not lent also afterwards.
        """
        pieces: list[Buffer] = []
        at = self._offset
        for index, chunk in enumerate(self._chunks):
            if chunk is None or not size:
                break
            if isinstance(chunk, bytearray):
                chunk = self._chunks[index] = bytes(chunk)  # it cannot grow while there is a view
            piece = memoryview(chunk)[at : at + size]
            pieces.append(piece)
            size -= len(piece)
            at = 0
        return pieces

    @property
    def cost(self) -> int:
        """The size of the queue as it counts towards a limit: its bytes, and all marks but one.

        The first mark is free, so that an end of file alone never fills a queue.
        """
        return self.size + MARK_COST * (self.marks - 1) if self.marks > 1 else self.size

    @property
    def at_mark(self) -> bool:
        """True if the next entry in the queue is a mark."""
        return bool(self._chunks) and self._chunks[0] is None

    def put_mark(self, *, always: bool = False) -> bool:
        """Append a mark. If the last entry is one already, do so only if `always` is true.

        Return True if a mark was appended.
        """
        last = self._chunks[-1] if self._chunks else None
        if always or last is not None or not self._chunks:
            if isinstance(last, bytearray):
                self._chunks[-1] = bytes(last)  # it no longer grows, and bytes use less memory
            self._chunks.append(None)
            self.marks += 1
            return True
        return False

    def take_mark(self) -> None:
        """Remove the mark at the head."""
        assert self.at_mark
        self._chunks.popleft()
        self.marks -= 1

    def clear(self) -> int:
        """Drop everything, and return how many bytes that was."""
        dropped = self.size
        self._chunks.clear()
        self._offset = self.size = self.marks = 0
        self.spent += self._lent
        self._lent.clear()
        self.give_back()
        return dropped

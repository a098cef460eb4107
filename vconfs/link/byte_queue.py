"""Bytes that wait for a reader, with the places where one connection ended marked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vconfs.protocol.events import Buffer

#: Small pieces are gathered into chunks of this size, so that a flood of one-byte buffers
#: costs about as much memory as it has bytes.
_CHUNK = 1 << 16
#: What a mark costs beside the bytes around it: a place in the queue, and a chunk that it ends.
#: This is less than the messages that make one take on their way.
MARK_COST = 56


class ByteQueue:
    """A first-in-first-out queue of bytes and hang-up marks.

    `take` never goes past a mark: what was sent before a hang-up and what comes after it stay
    apart, and the reader is shown the end of file that lies between.

    A large buffer can be in the queue without a copy of it: `lend`. Whoever takes from the queue
    calls `give_back` first, and has used by then what it took before.
    """

    __slots__ = ("_chunks", "_lent", "_offset", "_spent", "marks", "size")

    def __init__(self) -> None:
        #: None: a mark; a memoryview: lent, and its lender is in `_lent`, in the same order.
        self._chunks: deque[bytes | bytearray | memoryview | None] = deque()
        self._lent: deque[Callable[[], None]] = deque()
        self._spent: list[Callable[[], None]] = []  # of chunks that are taken
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

    def lend(self, data: memoryview, give_back: Callable[[], None]) -> None:
        """Append `data` itself; `lender` is called when it is of no more use here."""
        self.size += len(data)
        self._chunks.append(data)
        self._lent.append(give_back)

    def put_back(self, data: Buffer) -> None:
        """Put a copy of what was taken back at the head."""
        if not len(data):
            return
        if self._offset:
            assert self._chunks[0] is not None
            self._chunks[0] = self._chunks[0][self._offset :]
            self._offset = 0
        self._chunks.appendleft(bytes(data))
        self.size += len(data)

    def give_back(self) -> None:
        """Tell the lenders of what has been taken."""
        if self._spent:
            spent, self._spent = self._spent, []
            for give_back in spent:
                give_back()

    def own(self) -> None:
        """Copy what is still lent, for the lenders go."""
        for index, chunk in enumerate(self._chunks):
            if isinstance(chunk, memoryview):
                self._chunks[index] = bytes(chunk)
        self._spent += self._lent
        self._lent.clear()
        self.give_back()

    def take(self, size: int) -> list[Buffer]:
        """Remove up to `size` bytes, not past a mark, and give them in pieces."""
        pieces: list[Buffer] = []
        while size and self._chunks and (chunk := self._chunks[0]) is not None:
            rest = len(chunk) - self._offset
            if rest <= size:
                pieces.append(memoryview(chunk)[self._offset :] if self._offset else chunk)
                self._chunks.popleft()
                self._offset = 0
                if isinstance(chunk, memoryview):
                    self._spent.append(self._lent.popleft())
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
    def cost(self) -> int:
        """What the queue holds, as it counts towards a limit: its bytes, and all marks but one.

        One mark is always free, so that an end of file alone never fills a queue.
        """
        return self.size + MARK_COST * (self.marks - 1) if self.marks > 1 else self.size

    @property
    def at_mark(self) -> bool:
        """True if the next thing in the queue is a mark."""
        return bool(self._chunks) and self._chunks[0] is None

    def put_mark(self, *, always: bool = False) -> bool:
        """Append a mark, unless the last thing in the queue is one; `always`: even then.

        Return True if there is a mark more.
        """
        last = self._chunks[-1] if self._chunks else None
        if always or last is not None or not self._chunks:
            if isinstance(last, bytearray):
                self._chunks[-1] = bytes(last)  # it grows no more, and takes less memory so
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
        """Drop everything; tell how many bytes that were."""
        dropped = self.size
        self._chunks.clear()
        self._offset = self.size = self.marks = 0
        self._spent += self._lent
        self._lent.clear()
        self.give_back()
        return dropped

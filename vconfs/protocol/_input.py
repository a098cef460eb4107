"""How a byte stream is taken apart: pieces of any size in, whole parts out."""

from __future__ import annotations

from collections import deque
from typing import Final

from vconfs.protocol.errors import RemoteProtocolError

MAGIC: Final = b"\x89VCON\r\n\0"

#: So much of what is no hello is shown.
_SHOWN: Final = 32


class Input:
    """The bytes that came and are not taken yet, in the pieces that they came in."""

    def __init__(self) -> None:
        self.eof = False
        self._pieces: deque[memoryview] = deque()
        self._at = 0  # in the first piece
        self._partial: bytearray | None = None  # what is taken next, where it spans pieces
        self._filled = 0

    def __len__(self) -> int:
        return self._filled + sum(map(len, self._pieces)) - self._at

    def feed(self, data: bytes) -> None:
        if data:
            self._pieces.append(memoryview(data))

    def take(self, size: int) -> memoryview | None:
        """Give the next `size` bytes, a view of a piece if one has them all; None: not all here.

        Ask again for the same size then: they are copied as they come, each byte once.
        """
        pieces = self._pieces
        if self._partial is None:
            if not size:
                return memoryview(b"")
            if not pieces:
                return None
            end = self._at + size
            if end <= len(pieces[0]):
                found = pieces[0][self._at : end]
                self._advance(end)
                return found
            self._partial = bytearray(size)
        while pieces and self._filled < size:
            piece = pieces[0][self._at : self._at + size - self._filled]
            self._partial[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            self._advance(self._at + len(piece))
        if self._filled < size:
            return None
        whole = memoryview(self._partial)
        self._partial, self._filled = None, 0
        return whole

    def put_back(self, data: bytes) -> None:
        """Have bytes come first that were taken."""
        if self._at:
            self._pieces[0] = self._pieces[0][self._at :]
            self._at = 0
        self._pieces.appendleft(memoryview(data))

    def rest(self) -> bytes:
        """Copy what is here."""
        whole = b"".join(self._pieces)
        return bytes(self._partial or b"")[: self._filled] + whole[self._at :]

    def clear(self) -> None:
        """Drop what is here."""
        self._pieces.clear()
        self._at = 0

    def _advance(self, at: int) -> None:
        if at == len(self._pieces[0]):
            self._pieces.popleft()
            at = 0
        self._at = at


class Hunt:
    """Looks for the magic at the start of a stream, past noise where that is allowed."""

    def __init__(self, noise_max: int) -> None:
        self._noise_max = noise_max
        self._noise = 0
        self._tail = b""  # the last bytes, where the magic may begin with them
        self._over = False
        self.seen = b""  # the first bytes that came, for the error

    def found(self, source: Input) -> bool:
        """Take everything up to the end of the magic; False: it has not come yet."""
        if self._over:
            return True
        came = source.rest()
        source.clear()
        self.seen += came[: _SHOWN - len(self.seen)]
        data = self._tail + came
        start = data.find(MAGIC)
        if start >= 0:
            self._over = True
            source.feed(data[start + len(MAGIC) :])
        else:
            last = range(max(0, len(data) - len(MAGIC) + 1), len(data) + 1)
            start = next(n for n in last if MAGIC.startswith(data[n:]))
            self._tail = data[start:]
        self._noise += start
        if self._noise > self._noise_max:
            raise RemoteProtocolError(f"no hello: the stream begins with {self.seen!r}")
        return self._over

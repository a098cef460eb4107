"""How a byte stream is taken apart: pieces of any size in, whole parts out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer

MAGIC: Final = b"\x89VCON\r\n\0"

#: So much of what is no hello is shown.
_SHOWN: Final = 32
#: Smaller pieces are gathered, so that a flood of them costs about as much memory as its bytes.
_SMALL: Final = 1 << 12
_GATHERED: Final = 1 << 16


class Input:
    """The bytes that came and are not taken yet, in the pieces that they came in."""

    def __init__(self) -> None:
        self.eof = False
        self._pieces: deque[bytes | bytearray] = deque()  # the latter: gathered ones
        self._at = 0  # in the first piece
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def feed(self, data: bytes) -> None:
        self._size += len(data)
        pieces = self._pieces
        if len(data) >= _SMALL or not pieces:
            if data:
                pieces.append(data)
        elif isinstance(last := pieces[-1], bytearray) and len(last) < _GATHERED:
            last += data
        else:
            pieces.append(bytearray(data))

    def take(self, size: int) -> memoryview | None:
        """Give the next `size` bytes, a view of a piece if one has them all; None: not all here.

        What is in several pieces is copied, once all of it is here.
        """
        if size > self._size:
            return None
        if not size:
            return memoryview(b"")
        self._size -= size
        first, start, end = self._pieces[0], self._at, self._at + size
        if end > len(first):
            return memoryview(b"".join(self._cut(size)))
        self._advance(end)
        if isinstance(first, bytes):
            return memoryview(first)[start:end]
        return memoryview(bytes(first[start:end]))  # more may be added to it

    def _cut(self, size: int) -> Iterator[Buffer]:
        """Take `size` bytes, which are here, in pieces."""
        while size:
            piece = memoryview(self._pieces[0])[self._at : self._at + size]
            size -= len(piece)
            yield piece
            self._advance(self._at + len(piece))

    def put_back(self, data: bytes) -> None:
        """Have bytes come first that were taken."""
        if self._at:
            self._pieces[0] = self._pieces[0][self._at :]
            self._at = 0
        self._pieces.appendleft(data)
        self._size += len(data)

    def rest(self) -> bytes:
        """Copy what is here."""
        return b"".join(self._pieces)[self._at :]

    def clear(self) -> None:
        """Drop what is here."""
        self._pieces.clear()
        self._at = self._size = 0

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

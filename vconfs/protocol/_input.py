"""Splitting a byte stream into parts: pieces of any size go in, complete parts come out."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer

MAGIC: Final = b"\x89VCON\r\n\0"

#: An error shows this many bytes of a stream that does not begin with a hello.
_SHOWN: Final = 32
#: Smaller pieces are gathered, so that a flood of them uses about as much memory as its bytes.
_SMALL: Final = 1 << 12
_GATHERED: Final = 1 << 16


class Input:
    """Received bytes that are not taken yet, in the pieces in which they came."""

    def __init__(self) -> None:
        self.eof = False
        self._pieces: deque[bytes | bytearray] = deque()  # a bytearray is gathered
        self._at = 0  # offset in the first piece
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
        """Return the next `size` bytes, or None if fewer have come.

        The result is a view of a piece if one piece has them all. Otherwise it is a copy.
        """
        if size > self._size:
            return None
        if not size:
            return memoryview(b"")
        first, start, end = self._pieces[0], self._at, self._at + size
        if end > len(first):
            return memoryview(b"".join(self._cut(size)))
        self._advance(end)
        if isinstance(first, bytes):
            return memoryview(first)[start:end]
        return memoryview(bytes(first[start:end]))  # a copy, because the piece may grow

    def unpack(self, fields: struct.Struct) -> tuple[Any, ...] | None:
        """Take the next fields, or return None if not all of them have come."""
        if fields.size > self._size:
            return None
        first, start, end = self._pieces[0], self._at, self._at + fields.size
        if end > len(first):
            return fields.unpack(b"".join(self._cut(fields.size)))
        self._advance(end)
        return fields.unpack_from(first, start)

    def _cut(self, size: int) -> Iterator[Buffer]:
        """Take `size` bytes in pieces. There must be as many."""
        while size:
            piece = memoryview(self._pieces[0])[self._at : self._at + size]
            size -= len(piece)
            yield piece
            self._advance(self._at + len(piece))

    def put_back(self, data: bytes) -> None:
        """Put bytes that were taken back at the head."""
        if self._at:
            self._pieces[0] = self._pieces[0][self._at :]
            self._at = 0
        self._pieces.appendleft(data)
        self._size += len(data)

    def rest(self) -> bytes:
        """Return a copy of all bytes."""
        return b"".join(self._pieces)[self._at :]

    def clear(self) -> None:
        """Drop all bytes."""
        self._pieces.clear()
        self._at = self._size = 0

    def _advance(self, at: int) -> None:
        self._size -= at - self._at
        if at == len(self._pieces[0]):
            self._pieces.popleft()
            at = 0
        self._at = at


class Hunt:
    """A search for the magic at the start of a stream, after up to `noise_max` bytes of noise."""

    def __init__(self, noise_max: int) -> None:
        self._noise_max = noise_max
        self._noise = 0
        self._tail = b""  # the last bytes, if the magic may begin with them
        self._over = False
        self.seen = b""  # the first bytes that came, for the error

    def found(self, source: Input) -> bool:
        """Take everything up to the end of the magic. Return False if it has not come yet."""
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

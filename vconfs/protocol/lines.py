"""Lines of text: those that come in pieces of any size, and those that wait for a slow reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator

from vconfs.protocol.errors import RemoteProtocolError


class LineReader:
    """A splitter of a peer's bytes into lines, which may have up to `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that are complete now, without their ends.

        Raise RemoteProtocolError if a line is too long. Nothing can be read after that.
        """
        first, *others = data.split(b"\n")
        self._add(first)
        for piece in others:
            line = bytes(self._begun)
            self._begun.clear()
            yield line
            self._add(piece)

    def _add(self, piece: bytes) -> None:
        self._begun += piece
        if len(self._begun) > self._most:
            raise RemoteProtocolError(f"a line has at most {self._most} bytes")


class LineBacklog(ABC):
    """Lines that wait for one reader, up to `most` bytes; those beyond that are counted as lost.

    Where lines are missing, the reader gets a line that says so.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._lost_weight = 0

    @abstractmethod
    def lost_line(self, lines: int, weight: int) -> bytes:
        """Return the line that says how many lines are missing, and the sum of their weights."""

    def __len__(self) -> int:
        return len(self._lines)

    def put(self, line: bytes, weight: int = 0) -> bool:
        """Queue a line, after a line about lost ones if there are any.

        Return False if there is no space, and the line is lost.
        """
        lines = [line]
        if self._lost:
            lines.insert(0, self.lost_line(self._lost, self._lost_weight))
        size = sum(map(len, lines))
        if self._size + size > self._most:
            self.lose(weight)
            return False
        self._lost = self._lost_weight = 0
        self._lines += lines
        self._size += size
        return True

    def lose(self, weight: int) -> None:
        """Count a line as lost."""
        self._lost += 1
        self._lost_weight += weight

    def take(self, size: int) -> list[bytes]:
        """Take up to `size` bytes, in pieces; the last piece may be the beginning of a line."""
        taken: list[bytes] = []
        while size and self._lines:
            line = self._lines.popleft()
            if len(line) > size:
                self._lines.appendleft(line[size:])
                line = line[:size]
            taken.append(line)
            size -= len(line)
            self._size -= len(line)
        if self._lost and not self._lines:
            line = self.lost_line(self._lost, self._lost_weight)
            self._lost = self._lost_weight = 0
            self._lines.append(line)
            self._size += len(line)
        return taken

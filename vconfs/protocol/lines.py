"""Lines of text that come in pieces of any size."""

from __future__ import annotations

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

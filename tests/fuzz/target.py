"""What a target is, and a reader that makes decisions of its bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import frozen

#: The inputs in the repository: recorded conversations, and what once caused a crash.
CORPUS = Path(__file__).parent / "corpus"


@frozen
class Target:
    """A function to fuzz, and the exceptions that it may raise; any other is a crash."""

    name: str
    run: Callable[[bytes], None]
    allowed: tuple[type[Exception], ...]

    def __call__(self, data: bytes) -> None:
        with suppress(*self.allowed):
            self.run(data)

    @property
    def corpus(self) -> list[Path]:
        """The target's inputs in the repository."""
        return sorted((CORPUS / self.name).glob("*"))


TARGETS: dict[str, Target] = {}


def target(
    *allowed: type[Exception],
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Make a function a target of the same name."""

    def add(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run.__name__, run, allowed)
        return run

    return add


class Source:
    """Takes numbers and pieces from the bytes of an input; at the end these are zero and empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")

    def piece(self, size: int = 1) -> bytes:
        """Take a piece whose length comes first, as a number of `size` bytes."""
        return self.take(self.number(size))

    def rest(self) -> bytes:
        return self.take(len(self._data))


def with_length(piece: bytes, size: int = 1) -> bytes:
    """Return what `Source.piece` reads as this piece."""
    return len(piece).to_bytes(size, "little") + piece

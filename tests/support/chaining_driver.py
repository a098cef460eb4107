"""The driver side of a virtqueue that also sends chains of descriptors, as other drivers do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.virtqueue import DriverQueue, Segment


class ChainingDriver(DriverQueue):
    """A `DriverQueue` whose buffers can have several descriptors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._chained: dict[int, list[int]] = {}

    def add_chain(self, segments: Sequence[Segment]) -> int:
        """Offer a buffer of several descriptors. Those that the device may write come last."""
        if not 0 < len(segments) <= self.free:
            raise LocalProtocolError(f"{len(segments)} descriptors are wanted, {self.free} free")
        heads = [self._free.pop() for _ in segments]
        writable = self._describe(segments, self._desc, heads)
        self._chained[heads[0]] = heads[1:]
        self.offer(heads[0], writable)
        return heads[0]

    def pop_used(self) -> tuple[int, int] | None:
        """Take back a buffer, and all its descriptors."""
        used = super().pop_used()
        if used is not None:
            self._free += self._chained.pop(used[0], [])
        return used

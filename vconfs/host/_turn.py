"""A guest has one connection at a time: which task may serve it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from vconfs.errors import VconfsError

#: Seconds that a peer waits for the connection before it to be gone, when that has just left.
_HANDOVER: Final = 0.5


class Turn:
    """Held by the task that serves the connection of a guest; `name` is empty if it is the only."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._lock = trio.StrictFIFOLock()
        self._closed = False

    @asynccontextmanager
    async def taken(self, patience: float = _HANDOVER) -> AsyncIterator[None]:
        """Hold it during the block.

        Raise VconfsError if there is another connection, and for `patience` seconds it stays.
        """
        with trio.move_on_after(patience) as waiting:
            await self._lock.acquire()
        if waiting.cancelled_caught:
            named = f"guest {self._name!r} is connected already" if self._name else ""
            raise VconfsError(named or "the host end serves another guest")
        try:
            if self._closed:
                raise VconfsError(f"guest {self._name!r} was removed")
            yield
        finally:
            self._lock.release()

    def close(self) -> None:
        """Let no further task take it."""
        self._closed = True

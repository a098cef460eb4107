"""Background tasks of a block of code."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

#: How many things of a kind, of which a peer may have made thousands, are handled in one turn of
#: the event loop, if each takes at most about 50 µs.
PORTION: Final = 256


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """Open a nursery for background tasks of the block, which are cancelled when it ends.

    An exception of the block itself is raised as it is, not in an exception group.
    """
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised

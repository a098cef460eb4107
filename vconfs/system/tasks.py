"""Background tasks of a block of code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final, TypeVar

import trio

#: How many things of a kind, of which a peer may have made thousands, are handled in one turn of
#: the event loop, if each takes at most about 50 µs.
PORTION: Final = 256

T = TypeVar("T")


async def in_portions(call: Callable[[T], object], items: Iterable[T], size: int = PORTION) -> None:
    """Call `call` with each item; after each portion of `size` items, other tasks have a turn."""
    rest = iter(tuple(items))
    while portion := tuple(islice(rest, size)):
        for item in portion:
            call(item)
        await trio.lowlevel.checkpoint()


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

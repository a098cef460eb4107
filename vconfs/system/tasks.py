"""Background tasks of a block of code."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
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


def soon_in_portions(
    call: Callable[[T], object],
    items: Iterable[T],
    size: int = PORTION,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Call `call` with the first `size` items now, and with more after other tasks had a turn.

    When that is done for all, call `then`.
    """
    rest = deque(items)

    def go_on() -> None:
        for _ in range(min(size, len(rest))):
            call(rest.popleft())
        if not rest:
            then()
            return
        with suppress(trio.RunFinishedError):
            trio.lowlevel.current_trio_token().run_sync_soon(go_on)

    go_on()


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

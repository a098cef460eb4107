"""Which of several vhost-user front-ends that connect becomes the guest.

A listener has one guest at a time. While there is none, several peers can say their hello at once,
so that a silent one does not keep the others waiting: the first to finish becomes the guest. While
there is a guest no other peer is let in; those that had just finished their hello are next, in
order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import trio

T = TypeVar("T")

#: How many peers can say their hello at once.
GREETED_MAX: Final = 16


class Reception:
    """Lets peers in, and lets one at a time be the guest."""

    def __init__(self) -> None:
        self._door = trio.Lock()  # held by the task that waits for the next peer
        self._guest = trio.StrictFIFOLock()
        self._entering = trio.CancelScope()

    async def let_in(self, accept: Callable[[], Awaitable[T]]) -> T:
        """Wait until there is no guest, then for `accept`; call it again after each guest."""
        async with self._door:
            while True:
                async with self._guest:
                    pass
                with trio.CancelScope() as self._entering:
                    return await accept()

    @asynccontextmanager
    async def as_guest(self) -> AsyncIterator[None]:
        """Wait for the turn of a peer that has said hello; it is the guest during the block."""
        async with self._guest:
            self._entering.cancel()
            yield


async def receive_guests(serve_one: Callable[[], Awaitable[bool]], at_once: int) -> None:
    """Call `serve_one` again and again, in several tasks, until it returns False."""

    async def serve_on() -> None:
        while await serve_one():
            pass
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(serve_on)

"""Peers of a stream listener on their way to become guests.

Several peers can say their hello at once, so that a silent one does not keep the others waiting.
When there are too many, the one that has been silent for longest makes room for the next, so that
thousands of silent peers delay an honest one by seconds. A peer that has become a guest does not
count.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import trio
from attrs import define

from vconfs.errors import VconfsError
from vconfs.streams.stream_address import NextGuest
from vconfs.streams.wire import Wire
from vconfs.system.log_once import LogOnce

log: Final = logging.getLogger(__name__)

#: How many peers can say their hello at once.
GREETED_MAX: Final = 64
#: Seconds that each of them has for it at least.
_GREETING_MIN: Final = 0.25

#: Serves a peer, and calls its second argument when the peer has become a guest.
Serve: TypeAlias = Callable[[Wire, Callable[[], None]], Awaitable[None]]
Failed: TypeAlias = Callable[[Exception], Awaitable[None]]


@define(eq=False)
class Greeted:
    """A peer that has connected and is not a guest yet."""

    since: float
    scope: trio.CancelScope


class Greetings:
    """Lets peers in, and limits how many of them can say their hello at once."""

    def __init__(self, next_peer: NextGuest) -> None:
        self._next_peer = next_peer
        self._greeted: dict[Greeted, None] = {}  # in the order in which they came
        self._passed = trio.Event()
        self._trouble = LogOnce(log)

    async def run(self, serve: Serve, failed: Failed, *, one_by_one: bool = False) -> None:
        """Serve each peer that comes in a task of its own, until no more can come.

        `failed` is called, and may pause, after a VconfsError or OSError of `serve`, and after one
        that kept a peer from coming. With `one_by_one`, a peer can come when the last one has left.
        """
        if one_by_one:
            while await self._serve_one(serve, failed, lambda: None):
                pass
            return
        async with trio.open_nursery() as nursery:
            while await nursery.start(self._serve_in_task, serve, failed):
                await self._make_room()
            nursery.cancel_scope.cancel()

    async def _serve_in_task(
        self, serve: Serve, failed: Failed, *, task_status: trio.TaskStatus[bool]
    ) -> None:
        came = False

        def has_come() -> None:
            nonlocal came
            came = True
            task_status.started(True)

        more_can_come = await self._serve_one(serve, failed, has_come)
        if not came:
            task_status.started(more_can_come)

    async def _serve_one(self, serve: Serve, failed: Failed, has_come: Callable[[], None]) -> bool:
        """Wait for a peer and serve it; return False if no more can come."""
        with trio.CancelScope() as scope:
            one = Greeted(trio.current_time(), scope)
            try:
                async with self._next_peer() as wire:
                    if wire is None:
                        return False
                    one.since = trio.current_time()
                    self._greeted[one] = None
                    has_come()
                    await serve(wire, lambda: self._pass(one))
            except (VconfsError, OSError) as error:  # OSError: no descriptor is left, for example
                await failed(error)
            finally:
                self._pass(one)
        return True

    def _pass(self, one: Greeted) -> None:
        self._greeted.pop(one, None)
        self._passed.set()

    async def _make_room(self) -> None:
        """Wait until another peer can be let in; turn the one away that was silent for longest."""
        while len(self._greeted) >= GREETED_MAX:
            self._passed = trio.Event()
            oldest = next(iter(self._greeted))
            with trio.move_on_at(oldest.since + _GREETING_MIN):
                await self._passed.wait()
            if oldest in self._greeted and trio.current_time() >= oldest.since + _GREETING_MIN:
                self._trouble.warning("silent", "too many peers say no hello: one was turned away")
                oldest.scope.cancel()
                self._pass(oldest)

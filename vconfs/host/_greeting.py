"""Peers of a stream listener on their way to become guests.

Several peers can say their hello at once, so that a silent one does not keep the others waiting.
When there are too many, one of which we wait for an answer makes room for the next: soon if it has
sent nothing at all, so that thousands of silent peers delay an honest one by seconds; later if it
has begun, because many guests that come at once may be slow. A peer that waits for us stays, and
one that has become a guest does not count.
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
#: Seconds that a peer has at least until it says something, and until it says more.
_SILENT_MIN: Final = 0.25
_PAUSE_MIN: Final = 2.0

#: Serves a peer, and calls its second argument when the peer has become a guest.
Serve: TypeAlias = Callable[[Wire, Callable[[], None]], Awaitable[None]]
Failed: TypeAlias = Callable[[Exception], Awaitable[None]]


@define(eq=False)
class Greeted:
    """A peer that has connected and is not a guest yet."""

    since: float
    scope: trio.CancelScope
    wire: Wire


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
            try:
                async with self._next_peer() as wire:
                    if wire is None:
                        return False
                    has_come()
                    await self._greet(wire, serve, scope)
            except (VconfsError, OSError) as error:  # OSError: no descriptor is left, for example
                await failed(error)
        return True

    async def _greet(self, wire: Wire, serve: Serve, scope: trio.CancelScope) -> None:
        one = Greeted(trio.current_time(), scope, wire)
        self._greeted[one] = None
        try:
            await serve(wire, lambda: self._pass(one))
        finally:
            self._pass(one)

    def _pass(self, one: Greeted) -> None:
        self._greeted.pop(one, None)
        self._passed.set()

    async def _make_room(self) -> None:
        """Wait until another peer can be let in, or turn one away."""
        while len(self._greeted) >= GREETED_MAX:
            self._passed = trio.Event()
            one = min(self._greeted, key=_may_go_at)
            with trio.move_on_at(_may_go_at(one)):
                await self._passed.wait()
            if one in self._greeted and trio.current_time() >= _may_go_at(one):
                self._trouble.warning("late", "too many peers say no hello: one was turned away")
                one.scope.cancel()
                self._pass(one)


def _may_go_at(one: Greeted) -> float:
    """Return from when on a peer makes room for others."""
    if one.wire.has_input:
        return trio.current_time() + _SILENT_MIN  # it waits for us: look again then
    heard_at = one.wire.heard_at
    return one.since + _SILENT_MIN if heard_at is None else heard_at + _PAUSE_MIN

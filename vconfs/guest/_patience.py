"""The time limit for writes that wait for a host that takes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from attrs import define, field

#: A write that comes within this fraction of the patience after another gave up was waiting too.
_BEHIND: Final = 1 / 50


@define
class WaitLimit:
    """The time limit of one port's waiting writes.

    The kernel lets one write to a file through at a time: other writers queue up behind one that
    waits, where no signal reaches them. They have already waited when their turn comes, but the
    kernel does not say so. So a write that comes right after another one gave up gives up at once;
    otherwise the last of ten writers would wait ten times as long.
    """

    _waits: set[trio.CancelScope] = field(init=False, factory=set)
    _gave_up: float = field(init=False, default=-math.inf)

    @contextmanager
    def applied(self, patience: float) -> Iterator[None]:
        """Cancel the block after `patience` seconds, counted anew after each `restart`."""
        now = trio.current_time()
        deadline = now if self._has_just_ended(patience) else now + patience
        with trio.CancelScope(deadline=deadline) as scope:
            self._waits.add(scope)
            try:
                yield
            finally:
                self._waits.discard(scope)

    def gave_up(self, patience: float) -> None:
        """Note that a write gave up after waiting for `patience` seconds."""
        if not self._has_just_ended(patience):
            self._gave_up = trio.current_time()

    def restart(self, patience: float) -> None:
        """Let each waiting write go on for `patience` seconds from now."""
        self._gave_up = -math.inf
        if self._waits:
            deadline = trio.current_time() + patience
            for scope in self._waits:
                scope.deadline = deadline

    def _has_just_ended(self, patience: float) -> bool:
        return trio.current_time() - self._gave_up < patience * _BEHIND

"""How long a write waits for a host that takes nothing: the option `throttle`.

The option is a number of seconds: 0 is written `enospc`, and infinity `block`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from attrs import define, field

DEFAULT_PATIENCE: Final = 10.0
#: One value of each kind.
PATIENCE_EXAMPLES: Final = ("enospc", "block", "10s")

_WORDS: Final = {"enospc": 0.0, "block": math.inf}
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
_TIME: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m)")
#: A write that comes this soon after another gave up, as a part of the patience, was waiting too.
_BEHIND: Final = 1 / 50


def parse_patience(value: str | float) -> float:
    """Return the seconds that `throttle=value` stands for. Raise ValueError for other values."""
    if isinstance(value, str):
        if value in _WORDS:
            return _WORDS[value]
        if match := _TIME.fullmatch(value):
            return float(match[1]) * _UNITS[match[2]]
    elif value >= 0:
        return float(value)
    raise ValueError(f"throttle is enospc, block, or a time like 10s, 500ms or 2m, not {value!r}")


@define
class WaitLimit:
    """Ends the waits of one port's writes that have lasted too long.

    The kernel lets one write to a file through at a time: other writers queue up behind one that
    waits, where no signal reaches them. They have waited already when their turn comes, but it
    does not say so. So a write that comes right after another one gave up gives up at once;
    otherwise the last of ten writers would wait ten times as long.
    """

    _waits: set[trio.CancelScope] = field(init=False, factory=set)
    _gave_up: float = field(init=False, default=-math.inf)

    @contextmanager
    def applied(self, patience: float) -> Iterator[None]:
        """Cancel the block after `patience` seconds, or when `restart` says."""
        now = trio.current_time()
        deadline = now if self._has_just_ended(patience) else now + patience
        with trio.CancelScope(deadline=deadline) as scope:
            self._waits.add(scope)
            try:
                yield
            finally:
                self._waits.discard(scope)

    def gave_up(self, patience: float) -> None:
        """Note that a write has waited for `patience` seconds in vain."""
        if not self._has_just_ended(patience):
            self._gave_up = trio.current_time()

    def restart(self, patience: float) -> None:
        """Count anew for each wait: it may go on for `patience` seconds from now on."""
        self._gave_up = -math.inf
        if self._waits:
            deadline = trio.current_time() + patience
            for scope in self._waits:
                scope.deadline = deadline

    def _has_just_ended(self, patience: float) -> bool:
        return trio.current_time() - self._gave_up < patience * _BEHIND

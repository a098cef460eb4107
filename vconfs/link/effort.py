"""How much work one peer can make in one turn of the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio

#: The most work in one turn, in copied bytes: about 10 ms.
_TURN: Final = 16 << 20
#: The most work in a turn in which a link ends. This is more than our own guest end in this process
#: has in its rings; what other guests leave is taken in several turns before (`take_rest`).
_LAST_TURN: Final = 3 * _TURN
#: After this much work, the reset at the next turn is scheduled. Less is not worth a turn of the
#: event loop, and is added to that of later turns. So half of the work above can be done in each
#: turn. This is more than the rings of our own guest end hold for a port, so that data sent before
#: a hang-up is taken in the same turn.
_NOTED: Final = _TURN // 2
#: The cost of handling a buffer, and of each part that it consists of.
BUFFER: Final = 16 << 10
PART: Final = 4 << 10


class Effort:
    """The sum of one turn's work; `go_on` is called in the next turn if there was too much."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        #: True if the rest of the work has to wait for the next turn.
        self.is_spent: bool = False
        self._go_on = go_on
        self._spent = 0
        self._most = _TURN
        self._noted = False

    @contextmanager
    def extended(self) -> Iterator[None]:
        """Allow much more work in this turn while the block runs."""
        before, self._most = self._most, _LAST_TURN
        self.is_spent = self._spent >= self._most
        try:
            yield
        finally:
            self._most = before
            self.is_spent = self._spent >= self._most

    def spend(self, size: int) -> None:
        """Add work that costs as much as copying `size` bytes."""
        self._spent += size
        if self._spent < _NOTED:
            return
        self.is_spent = self._spent >= self._most
        if not self._noted:
            self._noted = True
            with suppress(trio.RunFinishedError):
                trio.lowlevel.current_trio_token().run_sync_soon(self._next_turn)

    def _next_turn(self) -> None:
        was_spent, self.is_spent = self.is_spent, False
        self._spent, self._noted = 0, False
        if was_spent:
            self._go_on()

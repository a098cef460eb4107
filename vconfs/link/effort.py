"""How much work one peer can make in one turn of the event loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

#: The work of a turn, in bytes that are copied: some 10 ms. It is more than the rings of our own
#: guest end hold for a port, so that what was sent before a hang-up is taken with it.
_TURN: Final = 16 << 20
#: After so much work it is noted that the next turn begins at nothing again.
_NOTED: Final = _TURN // 32
#: What handling a buffer costs, and each part that it consists of.
BUFFER: Final = 16 << 10
PART: Final = 4 << 10


class Effort:
    """Adds up the work of a turn; `go_on` is called in the next one, if it was too much for one."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self._go_on = go_on
        self._spent = 0
        self._noted = False

    @property
    def is_spent(self) -> bool:
        """True if what remains has to wait for the next turn."""
        return self._spent >= _TURN

    def spend(self, size: int) -> None:
        """Add work that costs as much as copying `size` bytes."""
        self._spent += size
        if self._spent >= _NOTED and not self._noted:
            self._noted = True
            with suppress(trio.RunFinishedError):
                trio.lowlevel.current_trio_token().run_sync_soon(self._next_turn)

    def _next_turn(self) -> None:
        was_spent = self.is_spent
        self._spent, self._noted = 0, False
        if was_spent:
            self._go_on()

"""Retries with growing pauses, and one log line when the trouble begins and when it is over."""

from __future__ import annotations

import errno
import logging
from typing import Final

import trio

log: Final = logging.getLogger(__name__)

#: Seconds from the first failure to the next try. The pauses double up to the last one.
FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 2.0
#: The most reasons that are logged while one trouble lasts, since a peer may choose the text.
_REASONS_MAX: Final = 8
#: Errors that can pass without a change here: the system is short of something.
_PASSING: Final = frozenset(
    (
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
    )
)


def is_passing(error: OSError) -> bool:
    """True if the system is short of space, descriptors, memory or processes for now."""
    return error.errno in _PASSING


class Pauses:
    """Pauses that double from `first` to `last`, in seconds."""

    def __init__(self, first: float = FIRST_PAUSE, last: float = LAST_PAUSE) -> None:
        self.last = last
        self._first = self._next = min(first, last)

    def next(self) -> float:
        """Return the length of the next pause."""
        pause, self._next = self._next, min(2 * self._next, self.last)
        return pause

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._next = self._first


class Backoff:
    """Retries of an operation that may fail for a while.

    After each failure call `failed`; after an end that is not a failure, call `wait`. Both return
    when it is time for the next try. Call `succeeded` when a try works. A success that does not
    last longer than the longest pause does not shorten the pauses, so an operation that fails soon
    after each success is not retried in a tight loop.

    The log has a warning when the trouble begins, `SUBJECT: REASON; trying again` (and one for
    each different reason until it is over), and the line `over` when it is over.
    """

    def __init__(self, subject: str, over: str, pauses: Pauses | None = None) -> None:
        self._subject = subject
        self._over = over
        self._pauses = pauses or Pauses()
        self._reasons: set[str] = set()  # logged since the trouble began
        self._succeeded: float | None = None  # the time at which the last try worked
        self._asked: trio.Event | None = None  # during a pause: ends it

    async def failed(self, reason: str | OSError) -> None:
        """Log `reason`, once, and pause."""
        if isinstance(reason, OSError):
            reason = reason.strerror or str(reason)
        if reason not in self._reasons and len(self._reasons) < _REASONS_MAX:
            self._reasons.add(reason)
            log.warning("%s: %s; trying again", self._subject, reason)
        await self.wait()

    async def wait(self) -> None:
        """Pause until the next try is due, or `try_now` is called."""
        if self._succeeded is not None:
            if trio.current_time() - self._succeeded > self._pauses.last:
                self._pauses.reset()
            self._succeeded = None
        self._asked = trio.Event()
        try:
            with trio.move_on_after(self._pauses.next()):
                await self._asked.wait()
        finally:
            self._asked = None

    def try_now(self) -> None:
        """End the pause, if there is one."""
        if self._asked is not None:
            self._asked.set()

    def succeeded(self) -> None:
        """Take note that a try worked; log the end of the trouble, if there was one."""
        self._succeeded = trio.current_time()
        if self._reasons:
            self._reasons.clear()
            log.info("%s", self._over)

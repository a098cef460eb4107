"""Waiting for what no event tells of: a condition is looked at again and again, for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

#: Seconds between two looks, and after which it is in vain.
_PAUSE, _LIMIT = 0.002, 30.0


async def until(condition: Callable[[], object], seconds: float = _LIMIT) -> None:
    """Wait until something holds. Raise TooSlowError if it does not in time."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(_PAUSE)


def block_until(condition: Callable[[], object], seconds: float = _LIMIT) -> None:
    """Wait as `until` does, where there is no event loop."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise trio.TooSlowError
        time.sleep(_PAUSE)

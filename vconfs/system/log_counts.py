"""A daemon's task that logs how many lines `log_once` has left out."""

from __future__ import annotations

import trio

from vconfs.system.log_once import PERIOD, tell_all


async def tell_of_repeats() -> None:
    """Log the counts about once a period until cancelled, and once more at the end."""
    try:
        while True:
            await trio.sleep(PERIOD)
            tell_all()
    finally:
        tell_all(end=True)

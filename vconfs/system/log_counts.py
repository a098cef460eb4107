"""The task of a daemon that logs how much `log_once` has left out."""

from __future__ import annotations

import trio

from vconfs.system.log_once import PERIOD, tell_all


async def tell_of_repeats() -> None:
    """Log the counts about once a period, and at the end, until cancelled."""
    try:
        while True:
            await trio.sleep(PERIOD)
            tell_all()
    finally:
        tell_all(end=True)

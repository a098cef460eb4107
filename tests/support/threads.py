"""Calls on the files of a mount, in threads: the one that serves the mount must not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """Do what may wait for a mount; given up when the test is."""
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


async def error_of(call: Callable[[], object]) -> int | None:
    """The errno that a call fails with."""
    try:
        await in_thread(call)
    except OSError as error:
        return error.errno
    return None

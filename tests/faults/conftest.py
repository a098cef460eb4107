"""Both ends as programs, on each device that they can have between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from .programs import Both, open_both

#: Seconds that a test has; what it has started ends in order then.
LIMIT = 50

#: What can be between the two ends: a DEVICE url without the path.
DEVICES = ["stream:unix"]


@pytest.fixture(params=DEVICES)
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Both]:
    with trio.fail_after(LIMIT):
        async with open_both(tmp_path, request.param) as starter:
            yield starter

"""Both ends as programs, on each device that they can have between them."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.support.limits import LONG

from .programs import Both, open_both

#: Seconds that a test has; what it has started ends in order then.
LIMIT = 1500 if LONG else 50

#: What can be between the two ends: a DEVICE url without the path.
DEVICES = ["stream:unix", "vhost-user"]


@pytest.fixture(params=DEVICES)
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Both]:
    with trio.fail_after(LIMIT):
        async with open_both(tmp_path, f"{request.param}:{tmp_path}/device") as starter:
            yield starter


@pytest.fixture
def numbers() -> random.Random:
    """Random numbers; the seed is shown when the test fails, and can be given."""
    seed = os.environ.get("VCONFS_SEED") or str(random.randrange(1 << 32))
    print(f"VCONFS_SEED={seed}")
    return random.Random(seed)

"""A short soak, so that `make soak` keeps working."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from .__main__ import soak


@pytest.mark.limit(120)
@pytest.mark.parametrize("names", [["embedded-virtio1", "stream"]])
async def test_a_short_soak(names: list[str], tmp_path: Path) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    for device in await soak(names, tmp_path, seed, 0, kills=1, length=(0.3, 0.6), rounds=2):
        assert device.kills and device.bytes

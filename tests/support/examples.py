"""How many random examples a test tries."""

from __future__ import annotations

from tests.support.limits import LONG


def examples(count: int) -> int:
    """Return how many examples a test tries that tries `count` in the everyday run."""
    return 10 * count if LONG else count

"""The speed has not become much worse: ratios to peers of the same run, beside stored ones."""

from __future__ import annotations

import pytest

from benchmarks import quick


@pytest.mark.long
@pytest.mark.limit(300)
def test_the_ratios_of_a_quick_run_are_near_the_stored_ones() -> None:
    """A second run, if needed, says what was noise of the machine."""
    known = quick.stored()
    first = quick.measure()
    assert first.keys() == known.keys()
    if suspects := quick.worse(first, known).keys():
        again = quick.worse(quick.measure(), known)
        assert {name: said for name, said in again.items() if name in suspects} == {}


def test_a_ratio_far_above_the_stored_one_is_found() -> None:
    known = {"write": 1.5, "read": 1.5}
    assert quick.worse({"write": 3.7, "read": 0.2}, known) == {}
    assert quick.worse({"write": 3.8, "read": 0.2}, known) == {"write": "3.8, and it was 1.5"}

"""How the option `throttle` is written; how long a write then waits is in test_port."""

from __future__ import annotations

import math

import pytest

from vconfs.cli._options import parse_options
from vconfs.guest.port import PortOptions
from vconfs.syntax.patience import parse_patience


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("enospc", 0),
        ("block", math.inf),
        ("10s", 10),
        ("500ms", 0.5),
        ("2m", 120),
        ("1.5s", 1.5),
        ("0s", 0),
        (0.25, 0.25),
        (math.inf, math.inf),
    ],
)
def test_values_of_throttle(value: str | float, seconds: float) -> None:
    assert parse_patience(value) == seconds
    assert PortOptions(throttle=value).throttle == seconds
    if isinstance(value, str):
        assert parse_options([f"throttle={value}"]).port.throttle == seconds


def test_ten_seconds_unless_said() -> None:
    assert PortOptions().throttle == parse_options([]).port.throttle == 10


@pytest.mark.parametrize(
    "value",
    ["", "10", "s", "-1s", "1 s", "10S", "ENOSPC", "1h", "nan", "inf", "1e3s", "10s,", "٣s", "1.s"],
)
def test_wrong_values_of_throttle(value: str) -> None:
    with pytest.raises(ValueError) as wrong:
        parse_options([f"throttle={value}"])
    expected = f"throttle is enospc, block, or a time like 10s, 500ms or 2m, not {value!r}"
    assert str(wrong.value) == expected


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_a_number_that_is_not_a_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="throttle is enospc, block, or a time"):
        PortOptions(throttle=seconds)

"""Times as users write them: 5s, 500ms, 2m."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
_TIME: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m)")


def parse_time(text: str) -> float | None:
    """Return the seconds that a time is, or None if `text` is not one."""
    found = _TIME.fullmatch(text)
    return float(found[1]) * _UNITS[found[2]] if found else None


def seconds(key: str, value: str) -> float:
    """Return the seconds of a time; a number without a unit is seconds."""
    time = parse_time(value)
    if time is None:
        time = parse_time(f"{value}s")
    if time is None:
        raise ValueError(f"{key} is a time like 5s, 500ms or 2m, not {value!r}")
    return time

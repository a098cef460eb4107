"""Sizes as users write them: 65536 (bytes), 64K, 4M, 1G. K, M and G are powers of 1024."""

from __future__ import annotations

import re
from typing import Final

_SHIFTS: Final = {"": 0, "k": 10, "m": 20, "g": 30}
#: A number without a unit is bytes; KiB and KB mean the same as K.
_SIZE: Final = re.compile("([0-9]{1,12})([kmg]?)(?:(?<=[kmg])i?b)?", re.IGNORECASE)


def parse_size(key: str, value: str, low: int, high: int) -> int:
    """Return the bytes of a size from `low` to `high`. Raise ValueError if it is wrong."""
    match = _SIZE.fullmatch(value)
    size = int(match[1]) << _SHIFTS[match[2].lower()] if match else -1
    if not low <= size <= high:
        span = f"from {format_size(low)} to {format_size(high)}"
        raise ValueError(f"{key} is a size in bytes, or like 64K, 4M, 1G, {span}, not {value!r}")
    return size


def parse_mebibytes(key: str, value: str, high: int) -> int:
    """Return a size from 1M to `high` MiB in whole MiB. Raise ValueError if it is wrong."""
    if value.isdecimal() and 0 < int(value) <= high:
        raise ValueError(f"{key}={value} would be {value} bytes: for {value} MiB write {value}M")
    size = parse_size(key, value, 1 << 20, high << 20)
    if size % (1 << 20):
        raise ValueError(f"{key} is a whole number of MiB, like 4M, not {value!r}")
    return size >> 20


def format_size(size: int) -> str:
    """Return a size with the largest unit that leaves no fraction."""
    for unit in "GMK":
        if size and not size % (1 << _SHIFTS[unit.lower()]):
            return f"{size >> _SHIFTS[unit.lower()]}{unit}"
    return str(size)

"""The option `throttle`: how long a write waits for a host that takes no data.

Its value is a number of seconds: 0 is written `enospc`, and infinity `block`.
"""

from __future__ import annotations

import math
import re
from typing import Final

DEFAULT_PATIENCE: Final = 10.0
#: One value of each kind.
PATIENCE_EXAMPLES: Final = ("enospc", "block", "10s")

_WORDS: Final = {"enospc": 0.0, "block": math.inf}
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0}
_TIME: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m)")


def parse_patience(value: str | float) -> float:
    """Return the seconds that `throttle=value` means. Raise ValueError if it is wrong."""
    if isinstance(value, str):
        if value in _WORDS:
            return _WORDS[value]
        if match := _TIME.fullmatch(value):
            return float(match[1]) * _UNITS[match[2]]
    elif value >= 0:
        return float(value)
    raise ValueError(f"throttle is enospc, block, or a time like 10s, 500ms or 2m, not {value!r}")

"""The option `throttle`: how long a write waits for a host that takes no data.

Its value is a number of seconds: 0 is written `enospc`, and infinity `block`.
"""

from __future__ import annotations

import math
from typing import Final

from vconfs.syntax.times import parse_time

DEFAULT_PATIENCE: Final = 10.0
#: One value of each kind.
PATIENCE_EXAMPLES: Final = ("enospc", "block", "10s")

_WORDS: Final = {"enospc": 0.0, "block": math.inf}


def parse_patience(value: str | float) -> float:
    """Return the seconds that `throttle=value` means. Raise ValueError if it is wrong."""
    if isinstance(value, str):
        if value in _WORDS:
            return _WORDS[value]
        if (time := parse_time(value)) is not None:
            return time
    elif value >= 0:
        return float(value)
    raise ValueError(f"throttle is enospc, block, or a time like 10s, 500ms or 2m, not {value!r}")

"""Places in our code, as the log names them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final

import vconfs

_PACKAGE: Final = Path(vconfs.__file__).parent


@cache
def is_ours(file: str) -> bool:
    """Return True if a file of code is in this package."""
    return _PACKAGE in Path(file).parents


def place_in(frames: Iterable[tuple[FrameType, int]]) -> str:
    """Return the last place of `frames` that is in our code, or "" if there is none."""
    place = ""
    for frame, line in frames:
        code = frame.f_code
        if is_ours(code.co_filename):
            file = Path(code.co_filename).relative_to(_PACKAGE.parent)
            place = f"{code.co_qualname} at {file}:{line}"
    return place

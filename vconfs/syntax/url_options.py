"""Options after the address of a DEVICE or LISTEN url: ADDRESS[,NAME=VALUE]..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: The order of columns and rows in RESIZE: the standard's, or the one that Linux reads.
RESIZE_OPTION: Final = "resize=cols-first|rows-first"


def split_options(scheme: str, rest: str, *known: str) -> tuple[str, dict[str, str]]:
    """Split `rest` into the address and the options, whose forms are in `known`.

    Raise ValueError if an option is unknown or given twice.
    """
    address, *words = rest.split(",")
    names = {form.partition("=")[0] for form in known}
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in names or not equals:
            raise ValueError(f"unknown option of {scheme}: {word!r}: it is {' or '.join(known)}")
        if name in options:
            raise ValueError(f"{scheme}: {name} is given twice")
        options[name] = value
    return address, options


def resize_rows_first(options: Mapping[str, str]) -> bool:
    """Return True if RESIZE has the rows first. Raise ValueError if the option is wrong."""
    order = options.get("resize", "cols-first")
    if order not in ("cols-first", "rows-first"):
        raise ValueError(f"resize is cols-first or rows-first, not {order!r}")
    return order == "rows-first"

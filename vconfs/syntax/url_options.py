"""Options behind an address, a chardev or a path: ADDRESS[,NAME=VALUE][,FLAG]...

They are read from the end, because some addresses contain commas themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

#: The order of columns and rows in RESIZE: the standard's, or the one that Linux reads.
RESIZE_OPTION: Final = "resize=cols-first|rows-first"


def no_commas(word: str) -> bool:
    """Refuse every comma in an address."""
    return False


def commas_of_paths(word: str) -> bool:
    """Allow commas in an address, but not a word like NAME=VALUE after one: it is a mistake."""
    return "=" not in word


def any_commas(word: str) -> bool:
    """Allow all commas in an address: it is a command, or has options of its own."""
    return True


def split_options(
    kind: str, text: str, *known: str, commas: Callable[[str], bool] = no_commas
) -> tuple[str, dict[str, str]]:
    """Split `text` into the address and its options, whose forms are in `known`.

    A form like "window=N" has a value, and one like "inband" is a flag, whose value is empty.
    `commas` returns True if the address may end with a comma and this word. Raise ValueError if
    what follows a comma is neither that nor a known option, or if an option is given twice.
    """
    forms = {form.partition("=")[0]: form for form in known}
    options: dict[str, str] = {}
    address = text
    while "," in address:
        rest, _, word = address.rpartition(",")
        name, equals, value = word.partition("=")
        if name not in forms:
            if commas(word):
                break
            takes = f"it is {' or '.join(known)}" if known else "it has none"
            raise ValueError(f"unknown option of {kind}: {word!r}: {takes}")
        takes_value = "=" in forms[name]
        if takes_value and not equals:
            raise ValueError(f"{name} needs a value: {forms[name]}")
        if equals and not takes_value:
            raise ValueError(f"{name} takes no value, not {value!r}")
        if name in options:
            raise ValueError(f"{name} is given twice")
        options[name] = value
        address = rest
    return address, options


def resize_rows_first(options: Mapping[str, str]) -> bool:
    """Return True if RESIZE has the rows first. Raise ValueError if the option is wrong."""
    order = options.get("resize", "cols-first")
    if order not in ("cols-first", "rows-first"):
        raise ValueError(f"resize is cols-first or rows-first, not {order!r}")
    return order == "rows-first"

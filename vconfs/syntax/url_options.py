"""Options behind an address, a chardev or a path: ADDRESS[,NAME=VALUE][,FLAG]...

A comma that belongs to the address itself is written twice, as in QEMU. Only commands keep their
commas as they are (`split_trailing_options`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

#: The order of columns and rows in RESIZE: the standard's, or the one that Linux reads.
RESIZE_OPTION: Final = "resize=cols-first|rows-first"

#: Option of QEMU's chardevs → what to write instead.
_OF_QEMU: Final = {
    **dict.fromkeys(("server", "listen"), "leave it out: unix and tcp listen, connect connects"),
    **dict.fromkeys(("wait", "nowait"), "leave it out: nothing waits for the far side"),
    **dict.fromkeys(("reconnect", "reconnect-ms"), "leave it out: connect tries again by itself"),
    **dict.fromkeys(("append", "mux", "signal", "delay", "nodelay", "telnet"), "leave it out"),
    "path": "write it after the colon: KIND:PATH",
    "host": "write it after the colon: tcp:HOST:PORT",
    "port": "write it after the colon: tcp:HOST:PORT",
}


def split_options(kind: str, text: str, *known: str) -> tuple[str, dict[str, str]]:
    """Split `text` into the address and its options, whose forms are in `known`.

    A form like "window=N" has a value, and one like "inband" is a flag, whose value is empty.
    Raise ValueError if what follows a comma is not a known option, or if one is given twice.
    """
    address, *words = _split(text)
    forms = _by_name(known)
    options: dict[str, str] = {}
    for word in words:
        if word.partition("=")[0] not in forms:
            raise ValueError(_unknown(kind, word, known))
        _add(options, forms, word)
    return address, options


def split_trailing_options(text: str, *known: str) -> tuple[str, dict[str, str]]:
    """Split the known options from the end of `text`, whose other commas belong to a command."""
    forms = _by_name(known)
    options: dict[str, str] = {}
    while "," in text:
        rest, _, word = text.rpartition(",")
        if word.partition("=")[0] not in forms:
            break
        _add(options, forms, word)
        text = rest
    return text, options


def join_options(address: str, options: Mapping[str, str]) -> str:
    """Return the text that `split_options` splits into these."""
    words = (f"{name}={value}" if value else name for name, value in options.items())
    return ",".join(word.replace(",", ",,") for word in (address, *words))


def _split(text: str) -> list[str]:
    """Split at commas, except those that are written twice, of which each pair becomes one."""
    words = [""]
    for number, part in enumerate(text.split(",,")):
        first, *others = part.split(",")
        words[-1] += ("," if number else "") + first
        words += others
    return words


def _by_name(forms: Sequence[str]) -> dict[str, str]:
    return {form.partition("=")[0]: form for form in forms}


def _add(options: dict[str, str], forms: Mapping[str, str], word: str) -> None:
    name, equals, value = word.partition("=")
    takes_value = "=" in forms[name]
    if takes_value and not equals:
        raise ValueError(f"{name} needs a value: {forms[name]}")
    if equals and not takes_value:
        raise ValueError(f"{name} takes no value, not {value!r}")
    if name in options:
        raise ValueError(f"{name} is given twice")
    options[name] = value


def _unknown(kind: str, word: str, known: Sequence[str]) -> str:
    name, equals, _ = word.partition("=")
    takes = f"it is {' or '.join(known)}" if known else "it has none"
    hint = _OF_QEMU.get(name) or ("" if equals else "a comma of the address is written twice")
    return f"unknown option of {kind}: {word!r}: {takes}" + (f" ({hint})" if hint else "")


def resize_rows_first(options: Mapping[str, str]) -> bool:
    """Return True if RESIZE has the rows first. Raise ValueError if the option is wrong."""
    order = options.get("resize", "cols-first")
    if order not in ("cols-first", "rows-first"):
        raise ValueError(f"resize is cols-first or rows-first, not {order!r}")
    return order == "rows-first"

"""What shells propose inside a word like NAME=unix:PATH,mode=VALUE: options, values, paths."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from vconfs.syntax.patience import PATIENCE_EXAMPLES


def _users() -> list[str]:
    return sorted({user.pw_name for user in pwd.getpwall()})


def _groups() -> list[str]:
    return sorted({group.gr_name for group in grp.getgrall()})


_SIZES: Final = ("64K", "1M", "4M", "16M")
#: Option → its values, or some of them as examples.
_VALUES: Final[Mapping[str, Callable[[], Iterable[str]]]] = {
    "mode": lambda: ("0600", "0640", "0660", "0666"),
    **dict.fromkeys(("uid", "owner"), _users),
    **dict.fromkeys(("gid", "group"), _groups),
    **dict.fromkeys(("limit", "host-limit", "window"), lambda: _SIZES),
    "throttle": lambda: PATIENCE_EXAMPLES,
    "drain": lambda: ("0", "5s", "1m"),
    "wait-for-host": lambda: ("30s", "5m"),
    "resize": lambda: ("cols-first", "rows-first"),
    "baud": lambda: ("9600", "38400", "115200"),
}
#: Options whose value is a path.
_PATHS: Final = ("config", "log")


def options(before: str, names: Iterable[str], typed: str) -> Iterator[str]:
    """Yield words for what is `typed` behind `before`: an option, or the value of one.

    A name that ends with an equals sign has a value.
    """
    name, equals, value = typed.partition("=")
    if not equals:
        yield from (before + it for it in names)
    elif name in _PATHS:
        found = paths(f"{before}{name}=", value)
        yield from (it for it in found if ",," not in it)  # -o has no way to write a comma
    elif name in _VALUES:
        yield from (f"{before}{name}={it}" for it in _VALUES[name]())


def paths(before: str, typed: str) -> Iterator[str]:
    """Yield words for the path that is `typed` behind `before`; that of a folder ends with /."""
    folder, _, start = typed.rpartition("/")
    parent = folder + "/" if "/" in typed else ""
    try:
        with os.scandir(parent.replace(",,", ",") or ".") as found:
            entries = sorted((it.name, it.is_dir()) for it in found)
    except OSError:
        return
    for name, is_folder in entries:
        if start or not name.startswith("."):
            yield f"{before}{parent}{name.replace(',', ',,')}{'/' if is_folder else ''}"


def last_word(text: str) -> int:
    """Return where the word behind the last single comma of `text` begins; 0 if there is none."""
    begin = 0
    position = text.find(",")
    while position >= 0:
        if text[position + 1 : position + 2] == ",":
            position += 1
        else:
            begin = position + 1
        position = text.find(",", position + 1)
    return begin


def as_typed(forms: Iterable[str]) -> Iterator[str]:
    """Yield the beginnings of options that are written like "mode=MODE" or "cache"."""
    for form in forms:
        name, equals, _ = form.partition("=")
        yield name + equals

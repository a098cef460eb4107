"""The -o options of a mount: parsing and completion."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import define, evolve, field

from vconfs.cli._values import options
from vconfs.files.tree import Access
from vconfs.fuse import MountFlag
from vconfs.guest.options import PortOptions
from vconfs.link.draining import DRAIN_TIME
from vconfs.syntax.times import seconds
from vconfs.syntax.values import ACCESS_OPTIONS, PORT_OPTIONS

#: Options of fstab that do nothing here: those for mount(8) and systemd, and those that say what
#: is the default, or, for suid and dev, what no mount of vconfs can have.
_FOR_OTHERS = re.compile(
    "defaults|auto|noauto|nofail|_netdev|user|nouser|users|owner|group|x-.*|comment=.*|subtype=.*"
    "|rw|suid|nosuid|dev|nodev|exec|async|atime|diratime|relatime|strictatime"
)
#: How an option -o begins, whose value stands behind that, or is the next word.
_OPTION = re.compile("-o|--options(=|$)")
#: Options of fstab that are flags of mount(2).
_FLAGS = {str(flag.name).lower(): flag for flag in MountFlag}
#: Options of the whole mount, as an error message shows them.
_OWN_OPTIONS = (
    "allow_other",
    "config=FILE",
    "drain=TIME",
    "fsname=NAME",
    "log=FILE",
    "tty=NAME",
    "wait-for-host=TIME",
)


def option_beginnings(typed: str) -> Iterator[str]:
    """Yield the options, with an equals sign where a value follows; after that, its values."""
    yield from options("", _beginnings(), typed)


def _beginnings() -> Iterator[str]:
    yield from ("allow_other", "config=", "drain=", "fsname=", "log=", "tty=", "wait-for-host")
    yield from (*_FLAGS, *_options_of_ports())


def _options_of_ports() -> Iterator[str]:
    for key, parse in {**PORT_OPTIONS, **ACCESS_OPTIONS}.items():
        try:
            parse(key, "")
            yield key
        except ValueError:
            yield f"{key}="


def with_config(words: Iterable[str]) -> Iterator[str]:
    """Yield a command line in which `-o config=FILE` is --config=FILE.

    It has no `-o rw` any more, which mount(8) adds to all options, because a `-o` would replace the
    options of the file.
    """
    rest = iter(words)
    for word in rest:
        begin = _OPTION.match(word)
        value = (word[begin.end() :] or next(rest, None)) if begin else None
        if value is None:
            yield word
            continue
        options = value.split(",")
        files = [option for option in options if option.startswith("config=")]
        if others := ",".join(it for it in options if it not in (*files, "rw")):
            yield from ("-o", others)
        yield from (f"--{file}" for file in files)


@define
class MountOptions:
    """The -o options of a mount, parsed."""

    port: PortOptions = field(factory=PortOptions)
    access: Access = field(factory=Access)
    allow_other: bool = False
    ttys: list[str] = field(factory=list)
    log: str | None = None
    drain: float = DRAIN_TIME
    flags: MountFlag = MountFlag.NONE
    source: str | None = None
    wait_for_host: float = 0.0


def patience_with_host(value: str) -> float:
    """Return the seconds that `wait-for-host=VALUE` means; raise ValueError if it is wrong."""
    return math.inf if value == "forever" else seconds("wait-for-host", value)


def parse_options(options: Iterable[str]) -> MountOptions:
    """Parse options like "wait", "mode=0660". Raise ValueError if one is wrong or unknown."""
    parsed = MountOptions()
    for option in options:
        if option and not _FOR_OTHERS.fullmatch(option):
            _set_option(parsed, option)
    return parsed


def _set_option(parsed: MountOptions, option: str) -> None:
    key, equals, value = option.partition("=")
    if option == "allow_other":
        parsed.allow_other = True
    elif key == "tty" and value:
        parsed.ttys.append(value)
    elif key == "log" and value:
        parsed.log = value
    elif option in _FLAGS:
        parsed.flags |= _FLAGS[option]
    elif key == "fsname" and value:
        parsed.source = value
    elif key == "wait-for-host":
        parsed.wait_for_host = patience_with_host(value) if equals else math.inf
    elif key == "drain":
        parsed.drain = seconds(key, value)
    elif key in PORT_OPTIONS:
        change: dict[str, Any] = {key: PORT_OPTIONS[key](key, value)}
        parsed.port = evolve(parsed.port, **change)
    elif key in ACCESS_OPTIONS:
        change = {key: ACCESS_OPTIONS[key](key, value)}
        parsed.access = evolve(parsed.access, **change)
    else:
        text = ", ".join(sorted((*_OWN_OPTIONS, *_FLAGS, *_options_of_ports())))
        raise ValueError(f"unknown option {option!r}: the options are {text}")

"""The syntax of a port of the host end: NAME=CHARDEV and its options.

    NAME=CHARDEV[,id=N][,console][,cache][,limit=MiB][,host-limit=BYTES]

The options are read from the end, so that a chardev may contain commas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vconfs.host.chardev import parse_chardev
from vconfs.host.port import HostPortSpec
from vconfs.protocol.v8 import LIMIT_MAX, PORTS_MAX
from vconfs.syntax.url_options import any_commas, split_options
from vconfs.syntax.values import number

_HOST_LIMIT_MAX: Final = 1 << 30


#: The options, as they are written.
_OPTIONS: Final = ("id=N", "console", "cache", "limit=MiB", "host-limit=BYTES")
#: Option with a number → the field of HostPortSpec, and the range.
_NUMBERS: Final[Mapping[str, tuple[str, int, int]]] = {
    "id": ("id", 0, PORTS_MAX - 1),
    "limit": ("limit", 1, LIMIT_MAX),
    "host-limit": ("host_limit", 1, _HOST_LIMIT_MAX),
}


def parse_port(text: str) -> HostPortSpec:
    """Parse NAME=CHARDEV[,OPTION…]; raise ValueError if it is wrong."""
    name, equals, rest = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=CHARDEV, for example clipboard=unix:/run/clip.sock")
    rest, options = split_options("a port", rest, *_OPTIONS, commas=any_commas)
    fields: dict[str, Any] = {flag: flag in options for flag in ("console", "cache")}
    for option, (field, low, high) in _NUMBERS.items():
        if option in options:
            fields[field] = number(option, options[option], low, high)
    chardev = parse_chardev(rest)
    name_bytes = name.encode(errors="surrogateescape")
    return HostPortSpec(name_bytes, chardev, chardev_text=rest, **fields)

"""The syntax of a port of the host end: NAME=CHARDEV and its options.

    NAME=CHARDEV[,id=N][,console][,cache][,limit=MiB][,host-limit=BYTES]

The options are read from the end, so that a chardev may contain commas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vconfs.host.chardev import parse_chardev
from vconfs.host.port import HostPortSpec
from vconfs.protocol.v8 import LIMIT_MAX, PORTS_MAX

_HOST_LIMIT_MAX = 1 << 30


def _number(option: str, low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"{option} is a number from {low} to {high}, not {text!r}")
        return int(text)

    return parse


def _flag(option: str) -> Callable[[str], bool]:
    def parse(text: str) -> bool:
        if text:
            raise ValueError(f"{option} takes no value, not {text!r}")
        return True

    return parse


#: Option → the field of HostPortSpec, and the parser of its value.
_OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "id": ("id", _number("id", 0, PORTS_MAX - 1)),
    "console": ("console", _flag("console")),
    "cache": ("cache", _flag("cache")),
    "limit": ("limit", _number("limit", 1, LIMIT_MAX)),
    "host-limit": ("host_limit", _number("host-limit", 1, _HOST_LIMIT_MAX)),
}


def parse_port(text: str) -> HostPortSpec:
    """Parse NAME=CHARDEV[,OPTION…]; raise ValueError if it is wrong."""
    name, equals, rest = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=CHARDEV, for example clipboard=unix:/run/clip.sock")
    options: dict[str, Any] = {}
    while (comma := rest.rfind(",")) >= 0:
        key, _, value = rest[comma + 1 :].partition("=")
        if key not in _OPTIONS:
            break
        field, parse = _OPTIONS[key]
        if field in options:
            raise ValueError(f"{key} is given twice")
        options[field] = parse(value)
        rest = rest[:comma]
    chardev = parse_chardev(rest)
    name_bytes = name.encode(errors="surrogateescape")
    return HostPortSpec(name_bytes, chardev, chardev_text=rest, **options)

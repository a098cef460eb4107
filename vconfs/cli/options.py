"""The -o options of a mount, as text and as what they mean."""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define, evolve, field

from vconfs.fs import Access
from vconfs.port import PortOptions

_LIMIT_MAX = 1 << 30
#: Options that mount(8) and fstab add, and that mean nothing here.
_FOR_OTHERS = re.compile(
    "rw|defaults|auto|noauto|nofail|_netdev|user|nouser|users|owner|group|suid|nosuid|dev|nodev"
    "|exec|noexec|relatime|noatime|x-.*|comment=.*|subtype=.*|fsname=.*"
)


@define
class MountOptions:
    """What the -o options of a mount ask for."""

    port: PortOptions = field(factory=PortOptions)
    access: Access = field(factory=Access)
    allow_other: bool = False
    ttys: list[str] = field(factory=list)


def parse_options(options: Iterable[str]) -> MountOptions:
    """Read options like "wait", "mode=0660"; ValueError names the wrong one and the way out."""
    port: dict[str, Any] = {}
    access: dict[str, Any] = {}
    allow_other = False
    ttys: list[str] = []
    for option in options:
        key, equals, value = option.partition("=")
        if not option or _FOR_OTHERS.fullmatch(option):
            continue
        if key == "allow_other" and not equals:
            allow_other = True
        elif key == "tty" and value:
            ttys.append(value)
        elif key in _PORT_OPTIONS:
            port[key] = _PORT_OPTIONS[key](key, value)
        elif key in _ACCESS_OPTIONS:
            access[key] = _ACCESS_OPTIONS[key](key, value)
        else:
            known = ", ".join(sorted(["allow_other", "tty=NAME", *_PORT_OPTIONS, *_ACCESS_OPTIONS]))
            raise ValueError(f"unknown option {option!r}: the options are {known}")
    return MountOptions(PortOptions(**port), evolve(Access(), **access), allow_other, ttys)


def _flag(key: str, value: str) -> bool:
    if value not in ("", "0", "1"):
        raise ValueError(f"{key} takes no value, not {value!r}")
    return value != "0"


def _throttle(key: str, value: str) -> str:
    if value not in ("enospc", "block"):
        raise ValueError(f"throttle is enospc or block, not {value!r}")
    return value


def _size(key: str, value: str) -> int:
    match = re.fullmatch("([0-9]{1,10})([kKmM]?)", value)
    size = int(match[1]) << {"": 0, "k": 10, "m": 20}[match[2].lower()] if match else 0
    if not 0 < size <= _LIMIT_MAX:
        raise ValueError(f"{key} is a number of bytes up to 1 GiB, like 65536 or 4M, not {value!r}")
    return size


def _mode(key: str, value: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError(f"mode is three octal digits, like 0660, not {value!r}")
    return int(value, 8)


def _user(key: str, value: str) -> int:
    return _id(key, value, lambda name: pwd.getpwnam(name).pw_uid)


def _group(key: str, value: str) -> int:
    return _id(key, value, lambda name: grp.getgrnam(name).gr_gid)


def _id(key: str, value: str, look_up: Callable[[str], int]) -> int:
    if re.fullmatch("[0-9]{1,9}", value):
        return int(value)
    try:
        return look_up(value)
    except KeyError:
        raise ValueError(f"{key} is a number or a name that is known here, not {value!r}") from None


_PORT_OPTIONS: Mapping[str, Callable[[str, str], object]] = {
    "exclusive": _flag,
    "wait": _flag,
    "cache": _flag,
    "throttle": _throttle,
    "limit": _size,
}
_ACCESS_OPTIONS: Mapping[str, Callable[[str, str], int]] = {
    "mode": _mode,
    "uid": _user,
    "gid": _group,
}

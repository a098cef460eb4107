"""Parsers for the values of options, on the command line and in a rules file.

Every parser takes the option's key and the text, and raises ValueError with what is wrong.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable, Mapping

from vconfs.syntax.patience import parse_patience
from vconfs.syntax.sizes import parse_size

_LIMIT_MAX = 1 << 30


def _flag(key: str, value: str) -> bool:
    if value not in ("", "0", "1"):
        raise ValueError(f"{key} takes no value, not {value!r}")
    return value != "0"


def _throttle(key: str, value: str) -> float:
    return parse_patience(value)


def _size(key: str, value: str) -> int:
    return parse_size(key, value, 1, _LIMIT_MAX)


def number(key: str, value: str, low: int, high: int) -> int:
    """Parse a number from `low` to `high`, both included."""
    if not re.fullmatch("[0-9]{1,12}", value) or not low <= int(value) <= high:
        raise ValueError(f"{key} is a number from {low} to {high}, not {value!r}")
    return int(value)


def parse_mode(key: str, value: str) -> int:
    """Parse the permission bits of a file."""
    if not re.fullmatch("0?[0-7]{3}", value):
        raise ValueError(f"mode is three octal digits, like 0660, not {value!r}")
    return int(value, 8)


def parse_user(key: str, value: str) -> int:
    """Return the ID of a user, who is named by number or name."""
    return _id(key, value, lambda name: pwd.getpwnam(name).pw_uid)


def parse_group(key: str, value: str) -> int:
    """Return the ID of a group, which is named by number or name."""
    return _id(key, value, lambda name: grp.getgrnam(name).gr_gid)


def _id(key: str, value: str, look_up: Callable[[str], int]) -> int:
    if re.fullmatch("[0-9]{1,9}", value):
        return int(value)
    try:
        return look_up(value)
    except KeyError:
        raise ValueError(f"{key} is a number or a name that is known here, not {value!r}") from None


#: Fields of PortOptions.
PORT_OPTIONS: Mapping[str, Callable[[str, str], object]] = {
    "exclusive": _flag,
    "wait": _flag,
    "cache": _flag,
    "throttle": _throttle,
    "limit": _size,
}
#: Fields of Access.
ACCESS_OPTIONS: Mapping[str, Callable[[str, str], int]] = {
    "mode": parse_mode,
    "uid": parse_user,
    "gid": parse_group,
}

#: The help text of each option of a port's file, and of a mount's further options.
OPTION_MEANINGS: Mapping[str, str] = {
    "mode": "permission bits of the file, like 0660",
    "uid": "the file's owner, by number or name",
    "gid": "the file's group, by number or name",
    "exclusive": "a second open fails with EBUSY",
    "wait": "while no host is connected, reading waits for one instead of being at end of file",
    "cache": "unread data is kept after the last close",
    "throttle": "how long a write waits while the host throttles the port (then ENOSPC), or while "
    "the device is away (then ENOTCONN): a time like 500ms or 2m, by default 10s, restarted "
    "whenever the host takes data again; enospc: do not wait; block: wait for ever",
    "limit": "how much unread data is kept before the host is throttled: a number of bytes or a "
    "size like 64K, 4M or 1G; the host can set less, never more. Without it 1M, and the host can "
    "set up to 16M",
    "drain": "how long the end of a mount waits for undelivered data while none of it is taken:"
    " a time like 500ms or 2m, by default 5s; 0: do not wait",
    "tty": "the port also has a pty, for programs that need a terminal",
    "allow_other": "other users may use the mount, as far as the modes of the files allow",
}

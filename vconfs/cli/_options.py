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
#: Options of fstab that are flags of mount(2).
_FLAGS = {str(flag.name).lower(): flag for flag in MountFlag}


def option_beginnings(typed: str) -> Iterator[str]:
    """Yield the options, with an equals sign where a value follows; after that, its values."""
    yield from options("", _beginnings(), typed)


def _beginnings() -> Iterator[str]:
    yield from ("allow_other", "drain=", "fsname=", "log=", "tty=", "wait-for-host", *_FLAGS)
    for key, parse in {**PORT_OPTIONS, **ACCESS_OPTIONS}.items():
        try:
            parse(key, "")
            yield key
        except ValueError:
            yield f"{key}="


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
    """Parse options like "wait", "mode=0660"; ValueError names the wrong one and the valid ones."""
    port: dict[str, Any] = {}
    access: dict[str, Any] = {}
    allow_other = False
    ttys: list[str] = []
    log: str | None = None
    drain = DRAIN_TIME
    wait_for_host = 0.0
    flags, source = MountFlag.NONE, None
    for option in options:
        key, equals, value = option.partition("=")
        if not option or _FOR_OTHERS.fullmatch(option):
            continue
        if key == "allow_other" and not equals:
            allow_other = True
        elif key == "tty" and value:
            ttys.append(value)
        elif key == "log" and value:
            log = value
        elif option in _FLAGS:
            flags |= _FLAGS[option]
        elif key == "fsname" and value:
            source = value
        elif key == "wait-for-host":
            wait_for_host = patience_with_host(value) if equals else math.inf
        elif key == "drain":
            drain = seconds(key, value)
        elif key in PORT_OPTIONS:
            port[key] = PORT_OPTIONS[key](key, value)
        elif key in ACCESS_OPTIONS:
            access[key] = ACCESS_OPTIONS[key](key, value)
        else:
            known = ", ".join(
                sorted(
                    [
                        *("allow_other", "drain=TIME", "fsname=NAME", "log=FILE", "tty=NAME"),
                        "wait-for-host=TIME",
                        *_FLAGS,
                        *PORT_OPTIONS,
                        *ACCESS_OPTIONS,
                    ]
                )
            )
            raise ValueError(f"unknown option {option!r}: the options are {known}")
    return MountOptions(
        PortOptions(**port),
        evolve(Access(), **access),
        allow_other,
        ttys,
        log,
        drain,
        flags,
        source,
        wait_for_host,
    )

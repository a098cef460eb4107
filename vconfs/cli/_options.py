"""The -o options of a mount: parsing and completion."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from attrs import define, evolve, field

from vconfs.files.tree import Access
from vconfs.guest.port import PortOptions
from vconfs.link.draining import DRAIN_TIME
from vconfs.syntax.patience import PATIENCE_EXAMPLES
from vconfs.syntax.times import seconds
from vconfs.syntax.values import ACCESS_OPTIONS, PORT_OPTIONS

#: Options that mount(8) and fstab add, and that have no meaning here.
_FOR_OTHERS = re.compile(
    "rw|defaults|auto|noauto|nofail|_netdev|user|nouser|users|owner|group|suid|nosuid|dev|nodev"
    "|exec|noexec|relatime|noatime|x-.*|comment=.*|subtype=.*|fsname=.*"
)


def option_beginnings(typed: str) -> Iterator[str]:
    """Yield the options, with an equals sign where a value follows.

    Once `throttle=` is typed, yield that option with its values instead.
    """
    if typed.startswith("throttle="):
        yield from (f"throttle={value}" for value in PATIENCE_EXAMPLES)
        return
    yield from ("allow_other", "drain=", "log=", "tty=")
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


def parse_options(options: Iterable[str]) -> MountOptions:
    """Parse options like "wait", "mode=0660"; ValueError names the wrong one and the valid ones."""
    port: dict[str, Any] = {}
    access: dict[str, Any] = {}
    allow_other = False
    ttys: list[str] = []
    log: str | None = None
    drain = DRAIN_TIME
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
                        *("allow_other", "drain=TIME", "log=FILE", "tty=NAME"),
                        *PORT_OPTIONS,
                        *ACCESS_OPTIONS,
                    ]
                )
            )
            raise ValueError(f"unknown option {option!r}: the options are {known}")
    return MountOptions(
        PortOptions(**port), evolve(Access(), **access), allow_other, ttys, log, drain
    )

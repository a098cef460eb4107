"""The syntax of a port of the host end: NAME=CHARDEV and its options.

    NAME=CHARDEV[,id=N][,console][,cache][,limit=SIZE][,host-limit=SIZE]

The chardev's own options stand among those of the port, in any order. A comma that belongs to a
path is written twice. A command keeps its commas: of `exec:COMMAND` only those words at the end
are options that are one of the port's.
"""

from __future__ import annotations

from typing import Any, Final

from vconfs.host.chardev import options_of, parse_chardev, split_kind
from vconfs.host.port import HostPortSpec
from vconfs.protocol.v8 import LIMIT_MAX, PORTS_MAX
from vconfs.syntax.sizes import parse_mebibytes, parse_size
from vconfs.syntax.url_options import join_options, split_options, split_trailing_options
from vconfs.syntax.values import number

_HOST_LIMIT_MAX: Final = 1 << 30

#: The options of every port, as they are written.
PORT_FORMS: Final = ("id=N", "console", "cache", "limit=SIZE", "host-limit=SIZE")
_NAMES: Final = [form.partition("=")[0] for form in PORT_FORMS]


def parse_port(text: str) -> HostPortSpec:
    """Parse NAME=CHARDEV[,OPTION…]; raise ValueError if it is wrong."""
    name, equals, rest = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=CHARDEV, for example clipboard=unix:/run/clip.sock")
    chardev_text, options = _split(rest)
    fields: dict[str, Any] = {flag: flag in options for flag in ("console", "cache")}
    if "id" in options:
        fields["id"] = number("id", options["id"], 0, PORTS_MAX - 1)
    if "limit" in options:
        fields["limit"] = parse_mebibytes("limit", options["limit"], LIMIT_MAX)
    if "host-limit" in options:
        host_limit = parse_size("host-limit", options["host-limit"], 1, _HOST_LIMIT_MAX)
        fields["host_limit"] = host_limit
    chardev = parse_chardev(chardev_text)
    name_bytes = name.encode(errors="surrogateescape")
    return HostPortSpec(name_bytes, chardev, chardev_text=chardev_text, **fields)


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Split the text after NAME= into the chardev with its own options and the port's options."""
    kind, _ = split_kind(text)
    own = options_of(kind)
    if own is None:
        return split_trailing_options(text, *PORT_FORMS)
    address, options = split_options(kind, text, *own, *PORT_FORMS)
    ports = {name: value for name, value in options.items() if name in _NAMES}
    others = {name: value for name, value in options.items() if name not in _NAMES}
    return join_options(address, others), ports

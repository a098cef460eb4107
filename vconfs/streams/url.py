"""The places that streams can lead to, by what stands behind `stream:`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vconfs.streams.lines import ExecPlace, StdioPlace, TtyPlace
from vconfs.streams.place import Place
from vconfs.streams.sockets import TcpPlace, UnixPlace, VsockPlace

#: What streams carry.
DIALECT: Final = "v8"

#: How a place is called, and who reads what stands behind that.
PLACES: Final[Mapping[str, Callable[[str], Place]]] = {
    "unix": UnixPlace.parse,
    "tcp": TcpPlace.parse,
    "vsock": VsockPlace.parse,
    "tty": TtyPlace.parse,
    "exec": ExecPlace.parse,
    "stdio": StdioPlace.parse,
}


def parse_place(text: str) -> Place:
    """Read what stands behind `stream:`; ValueError names what is wrong with it."""
    name = text.replace(",", ":").partition(":")[0]
    if name not in PLACES:
        known = ", ".join(f"stream:{name}" for name in PLACES)
        raise ValueError(f"unknown stream {text!r}: it is one of {known}")
    return PLACES[name](text.removeprefix(name).removeprefix(":"))

"""The kinds of stream addresses, by the word that follows `stream:`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vconfs.streams._line_addresses import ExecAddress, StdioAddress, TtyAddress
from vconfs.streams._socket_addresses import TcpAddress, UnixAddress, VsockAddress
from vconfs.streams.stream_address import StreamAddress

#: The dialect that streams carry.
DIALECT: Final = "v8"

#: The parser of each kind of address, for the text after its name.
ADDRESSES: Final[Mapping[str, Callable[[str], StreamAddress]]] = {
    "unix": UnixAddress.parse,
    "tcp": TcpAddress.parse,
    "vsock": VsockAddress.parse,
    "tty": TtyAddress.parse,
    "exec": ExecAddress.parse,
    "stdio": StdioAddress.parse,
}


def parse_stream_address(text: str) -> StreamAddress:
    """Parse the text after `stream:`. Raise ValueError with what is wrong with it."""
    name = text.replace(",", ":").partition(":")[0]
    if name not in ADDRESSES:
        known = ", ".join(f"stream:{name}" for name in ADDRESSES)
        raise ValueError(f"unknown stream {text!r}: it is one of {known}")
    return ADDRESSES[name](text.removeprefix(name).removeprefix(":"))

"""The places that streams can lead to, by what stands behind `stream:`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from vconfs.streams.address import StreamAddress
from vconfs.streams.lines import ExecAddress, StdioAddress, TtyAddress
from vconfs.streams.sockets import TcpAddress, UnixAddress, VsockAddress

#: What streams carry.
DIALECT: Final = "v8"

#: How a place is called, and who reads what stands behind that.
ADDRESSES: Final[Mapping[str, Callable[[str], StreamAddress]]] = {
    "unix": UnixAddress.parse,
    "tcp": TcpAddress.parse,
    "vsock": VsockAddress.parse,
    "tty": TtyAddress.parse,
    "exec": ExecAddress.parse,
    "stdio": StdioAddress.parse,
}


def parse_stream_address(text: str) -> StreamAddress:
    """Read what stands behind `stream:`; ValueError names what is wrong with it."""
    name = text.replace(",", ":").partition(":")[0]
    if name not in ADDRESSES:
        known = ", ".join(f"stream:{name}" for name in ADDRESSES)
        raise ValueError(f"unknown stream {text!r}: it is one of {known}")
    return ADDRESSES[name](text.removeprefix(name).removeprefix(":"))

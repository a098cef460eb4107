"""What the control messages of both dialects have in common: (id, value, payload) -> event."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.events import Event, Ignored, PortNamed, PortOpened, Resized

#: The longest name: what fits into one page beside header and control packet of v8.
NAME_MAX: Final = 4096 - 12 - 4
#: More ports than this are not believed; the standard's own bound for ids is its queue count.
PORTS_MAX: Final = 1 << 15

#: Two fields of a size in characters.
SIZE: Final = struct.Struct("<HH")

Handlers: TypeAlias = Mapping[int, Callable[[int, int, memoryview], Event]]


def check_name(name: bytes) -> bytes:
    """Give a name that may be sent; LocalProtocolError: it is too long."""
    if len(name) > NAME_MAX:
        raise LocalProtocolError(f"a port name has at most {NAME_MAX} bytes, not {len(name)}")
    return name


def named(id: int, value: int, payload: memoryview) -> Event:
    """PORT_NAME: the name, of which one trailing NUL is stripped."""
    name = bytes(payload)
    if len(name) > NAME_MAX + 1:
        return Ignored(id, f"a name of {len(name)} bytes is longer than {NAME_MAX}")
    return PortNamed(id, name.removesuffix(b"\0"))


def resized(id: int, value: int, payload: memoryview) -> Event:
    """RESIZE: columns and rows."""
    if len(payload) < SIZE.size:
        return Ignored(id, f"a RESIZE with {len(payload)} bytes of size is too short")
    cols, rows = SIZE.unpack_from(payload)
    return Resized(id, cols, rows)


def opened(id: int, value: int, payload: memoryview) -> Event:
    """PORT_OPEN: opened or closed."""
    return PortOpened(id, bool(value))

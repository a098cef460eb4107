"""What both dialects have in common: the config space, and some of the control messages."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.events import (
    Buffer,
    ConfigWrite,
    ConsolePort,
    Event,
    Ignored,
    PortAdded,
    PortNamed,
    PortOpened,
    Resized,
)

F_SIZE: Final = 1 << 0
F_MULTIPORT: Final = 1 << 1

#: The longest name: what fits into one page beside header and control packet of v8.
NAME_MAX: Final = 4096 - 12 - 4
#: More ports than this are not believed; the standard's own bound for ids is its queue count.
PORTS_MAX: Final = 1 << 15

#: Columns and rows: what a RESIZE carries, and how the config space begins.
SIZE: Final = struct.Struct("<HH")
#: Columns, rows, and a number of ports, which each dialect takes for something else.
CONFIG: Final = struct.Struct("<HHI")

# --- what is sent -------------------------------------------------------------------------


def check_name(name: bytes) -> bytes:
    """Give a name that may be sent; LocalProtocolError: it is too long."""
    if len(name) > NAME_MAX:
        raise LocalProtocolError(f"a port name has at most {NAME_MAX} bytes, not {len(name)}")
    return name


def check_size(cols: int, rows: int) -> tuple[int, int]:
    """Give a console's size that may be sent; LocalProtocolError: it is none."""
    if not (0 <= cols < 1 << 16 and 0 <= rows < 1 << 16):
        raise LocalProtocolError(f"columns and rows are 0 to 65535, not {cols} and {rows}")
    return cols, rows


# --- control messages that came -----------------------------------------------------------

#: Control event -> what to make of (id, value, payload).
Handlers: TypeAlias = Mapping[int, Callable[[int, int, memoryview], Event]]


def opened(id: int, value: int, payload: memoryview) -> Event:
    """PORT_OPEN: opened or closed."""
    return PortOpened(id, bool(value))


def named(id: int, value: int, payload: memoryview) -> Event:
    """PORT_NAME: the name, of which one trailing NUL is stripped."""
    name = bytes(payload).removesuffix(b"\0")
    if len(name) > NAME_MAX:
        return Ignored(id, f"a name of {len(name)} bytes is longer than {NAME_MAX}")
    return PortNamed(id, name)


def console(id: int, value: int, payload: memoryview) -> Event:
    """CONSOLE_PORT: this port is a console; Linux overlooks the value 0 as well."""
    return ConsolePort(id) if value else Ignored(id, "CONSOLE_PORT with value 0")


def resized(id: int, value: int, payload: memoryview) -> Event:
    """RESIZE: columns and rows."""
    if len(payload) < SIZE.size:
        return Ignored(id, f"a RESIZE with {len(payload)} bytes of size is too short")
    cols, rows = SIZE.unpack_from(payload)
    return Resized(id, cols, rows)


# --- the config space ---------------------------------------------------------------------


class ConfigReader:
    """The part of a guest end that reads the config space.

    Only fields whose feature was negotiated count. Without MULTIPORT there is one port, 0, which
    is a console and whose other side counts as open.
    """

    features: int
    multiport: bool
    _alone = False
    _size = (0, 0)

    def receive_config(self, config: bytes) -> list[Event]:
        """Say what a config space means, at the start and after each config interrupt."""
        needed = CONFIG.size if self.multiport else SIZE.size if self.features & F_SIZE else 0
        events: list[Event] = []
        if not self.multiport and not self._alone:
            self._alone = True
            events += [PortAdded(0), ConsolePort(0), PortOpened(0, True)]
        if len(config) < needed:
            return [*events, Ignored(None, f"a config space of {len(config)} bytes is too short")]
        if self.multiport:
            events += self._ports_changed(CONFIG.unpack_from(config)[2])
        if self.features & F_SIZE:
            events += self._size_changed(*SIZE.unpack_from(config))
        return events

    def emergency_writes(self, data: Buffer) -> list[ConfigWrite]:
        """Say how output of port 0 goes out before that is there; nothing: it cannot."""
        return []

    def _ports_changed(self, ports: int) -> list[Event]:
        """Say what the number of ports means (with MULTIPORT only)."""
        raise NotImplementedError

    def _size_changed(self, cols: int, rows: int) -> list[Event]:
        if (cols, rows) == self._size:
            return []
        self._size = (cols, rows)
        return [Resized(0, cols, rows)]

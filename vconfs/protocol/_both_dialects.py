"""The common parts of both dialects: the config space, and some of the control messages."""

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

#: The longest name: it fits into one page with the header and the control packet of v8.
NAME_MAX: Final = 4096 - 12 - 4
#: A larger number of ports is an error. The standard limits ids only by its number of queues.
PORTS_MAX: Final = 1 << 15

#: Columns and rows, in a RESIZE and at the start of the config space.
SIZE: Final = struct.Struct("<HH")
#: Columns, rows, and a number of ports, whose meaning depends on the dialect.
CONFIG: Final = struct.Struct("<HHI")

# --- what is sent -------------------------------------------------------------------------


def check_name(name: bytes) -> bytes:
    """Return a port's name to send. Raise LocalProtocolError if it is too long."""
    if len(name) > NAME_MAX:
        raise LocalProtocolError(f"a port name has at most {NAME_MAX} bytes, not {len(name)}")
    return name


def check_size(cols: int, rows: int) -> tuple[int, int]:
    """Return a console's size to send. Raise LocalProtocolError if it is out of range."""
    if not (0 <= cols < 1 << 16 and 0 <= rows < 1 << 16):
        raise LocalProtocolError(f"columns and rows are 0 to 65535, not {cols} and {rows}")
    return cols, rows


# --- received control messages ------------------------------------------------------------

#: Control event → a function that turns (id, value, payload) into an event.
Handlers: TypeAlias = Mapping[int, Callable[[int, int, memoryview], Event]]


def opened(port_id: int, value: int, payload: memoryview) -> Event:
    """Handle PORT_OPEN: opened or closed."""
    return PortOpened(port_id, bool(value))


def named(port_id: int, value: int, payload: memoryview) -> Event:
    """Handle PORT_NAME: the name, without one trailing NUL."""
    name = bytes(payload).removesuffix(b"\0")
    if len(name) > NAME_MAX:
        return Ignored(port_id, f"a name of {len(name)} bytes is longer than {NAME_MAX}")
    return PortNamed(port_id, name)


def console(port_id: int, value: int, payload: memoryview) -> Event:
    """Handle CONSOLE_PORT: this port is a console. Linux ignores the value 0 as well."""
    return ConsolePort(port_id) if value else Ignored(port_id, "CONSOLE_PORT with value 0")


def resized(port_id: int, value: int, payload: memoryview) -> Event:
    """Handle RESIZE: columns and rows."""
    if len(payload) < SIZE.size:
        return Ignored(port_id, f"a RESIZE with {len(payload)} bytes of size is too short")
    cols, rows = SIZE.unpack_from(payload)
    return Resized(port_id, cols, rows)


# --- the config space ---------------------------------------------------------------------


class ConfigReader:
    """The part of a guest end that reads the config space.

    Only fields whose feature was negotiated are used. Without MULTIPORT there is one port, 0,
    which is a console and whose other side counts as open.
    """

    features: int
    multiport: bool
    _alone = False
    _size = (0, 0)

    def receive_config(self, config: bytes) -> list[Event]:
        """Return the events for a config space, at the start and after each config interrupt."""
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
        """Return the writes for output of port 0 before the port exists, or none if impossible."""
        return []

    def _ports_changed(self, ports: int) -> list[Event]:
        """Return the events for the number of ports in the config space (with MULTIPORT only)."""
        raise NotImplementedError

    def _size_changed(self, cols: int, rows: int) -> list[Event]:
        if (cols, rows) == self._size:
            return []
        self._size = (cols, rows)
        return [Resized(0, cols, rows)]

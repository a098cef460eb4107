"""The dialect of the "v8 patch", the kernel patch of October 2009: both ends.

Theory of operation
-------------------
All ports share two queues: 0 carries buffers from the host to the guest (input), 1 from the
guest to the host (output). With MULTIPORT every buffer starts with a header. If its INTERNAL
flag is set, a control packet follows, otherwise data:

    header   u32 id, u32 flags, u32 size      flags bit 0: INTERNAL
    control  u16 event, u16 value             then the name, for PORT_NAME

The config space (u16 cols, u16 rows, u32 nr_active_ports) defines which ports exist: 0 to
nr_active_ports - 1. A config change with a larger number adds ports, one with a smaller number
removes the last ports, and one with the same number means that port 0's name may have changed.

Without MULTIPORT there are no headers and no control packets: there is one port, 0, which is a
console and whose other side counts as open.

The only input of an end is the bytes passed to it, and its only output is what its methods
return. `receive` turns one buffer into one event. What the peer may not send becomes `Ignored`,
never an exception, because a bad buffer of one port must not stop the others. There is a method
for each kind of message; it returns a `Message`, or None if this peer would not understand it.

Two messages that consoles need do not exist in the patch: one that removes a port other than the
last one, and one with the size of each console. If both ends offer feature bit 23 (PORT_EVENTS,
ours), there are events 6 PORT_ADD, 7 PORT_REMOVE and 8 RESIZE (followed by u16 cols, u16 rows).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import ClassVar, Final

from vconfs.protocol._both_dialects import (
    CONFIG,
    F_MULTIPORT,
    F_SIZE,
    NAME_MAX,
    PORTS_MAX,
    SIZE,
    ConfigReader,
    Handlers,
    check_name,
    check_size,
    console,
    named,
    opened,
    resized,
)
from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.events import (
    Buffer,
    CacheSet,
    Data,
    Event,
    Ignored,
    LimitSet,
    Message,
    NameAsked,
    NameStale,
    PortAdded,
    PortRemoved,
    Throttled,
)

__all__ = [
    "CONFIG",
    "CONTROL",
    "FEATURES",
    "F_MULTIPORT",
    "F_PORT_EVENTS",
    "F_SIZE",
    "HEADER",
    "INPUT",
    "INTERNAL",
    "LIMIT_MAX",
    "LIMIT_UNIT",
    "NAME_MAX",
    "OUTPUT",
    "PORTS_MAX",
    "QUEUES",
    "ControlEvent",
    "GuestEnd",
    "HostEnd",
    "addressee",
]

F_PORT_EVENTS: Final = 1 << 23
FEATURES: Final = F_SIZE | F_MULTIPORT | F_PORT_EVENTS

INPUT: Final = 0
OUTPUT: Final = 1
QUEUES: Final = 2

INTERNAL: Final = 1

HEADER: Final = struct.Struct("<III")
CONTROL: Final = struct.Struct("<HH")
_HEADER_CONTROL: Final = struct.Struct("<IIIHH")

#: One step of BUFFER_LIMIT: 256 buffers of 4 KiB.
LIMIT_UNIT: Final = 1 << 20
#: The largest value of BUFFER_LIMIT.
LIMIT_MAX: Final = (1 << 16) - 1


def addressee(buffer: Buffer) -> tuple[int, bool]:
    """Return the port of a buffer, and True if the buffer is a control message."""
    if len(buffer) < HEADER.size:
        return 0, False
    port_id, flags, _ = HEADER.unpack_from(buffer)
    return port_id, bool(flags & INTERNAL)


class ControlEvent(IntEnum):
    """The `event` of a control packet."""

    PORT_OPEN = 0
    PORT_NAME = 1
    CONSOLE_PORT = 2
    CACHE_BUFFERS = 3
    THROTTLE_PORT = 4
    BUFFER_LIMIT = 5
    PORT_ADD = 6
    PORT_REMOVE = 7
    RESIZE = 8


class _End:
    """The base of both ends: the framing of buffers, and the messages that both can send."""

    #: The queue that this end sends on.
    sends_on: int
    #: Back-pressure on a port is a THROTTLE_PORT message, because all ports share the buffers.
    throttles = True
    ports_in_config = True
    #: Event of a control packet → the function that makes an event of it.
    _handlers: ClassVar[Handlers]

    def __init__(self, features: int) -> None:
        self.features = features
        self.multiport: bool = bool(features & F_MULTIPORT)
        #: The ids of ports are smaller than this.
        self.max_ports = PORTS_MAX if self.multiport else 1
        #: The number of bytes before the data of every buffer.
        self.header_size: int = HEADER.size if self.multiport else 0
        self._extended = self.multiport and bool(features & F_PORT_EVENTS)

    @property
    def queues(self) -> int:
        """The number of virtqueues that this end uses."""
        return QUEUES

    def data_queue(self, port_id: int) -> int:
        """Return the queue on which data of a port is sent: the same one for all ports."""
        return self.sends_on

    def receive_queue(self, port_id: int) -> int:
        """Return the queue on which data of a port comes: the same one for all ports."""
        return INPUT + OUTPUT - self.sends_on

    def port_of(self, queue: int) -> int | None:
        """Return None: no queue belongs to one port only."""
        return None

    def data_header(self, port_id: int, size: int) -> bytes:
        """Return the header of data.

        `size` is the length of the whole write request in its first buffer, and 0 in the others.
        """
        return HEADER.pack(port_id, 0, size) if self.multiport else b""

    def port_open(self, port_id: int, opened: bool) -> Message | None:
        """Return the message that our side of the port was opened or closed."""
        return self._control(port_id, ControlEvent.PORT_OPEN, opened)

    def throttle(self, port_id: int, on: bool) -> Message | None:
        """Return the request to stop sending on this port, or to resume."""
        return self._control(port_id, ControlEvent.THROTTLE_PORT, on)

    def receive(self, queue: int, buffer: memoryview) -> Event:
        """Return the event for one buffer that came on `queue`."""
        if not self.multiport:
            return Data(0, buffer)
        if len(buffer) < HEADER.size:
            return Ignored(None, f"a buffer of {len(buffer)} bytes has no complete header")
        port_id, flags, size = HEADER.unpack_from(buffer)
        if not flags & INTERNAL:
            return Data(port_id, buffer[HEADER.size :], size)
        packet = buffer[HEADER.size :]
        if len(packet) < CONTROL.size:
            return Ignored(port_id, f"a control packet of {len(packet)} bytes is too short")
        event, value = CONTROL.unpack_from(packet)
        handler = self._handlers.get(event)
        if handler is None or (event > ControlEvent.BUFFER_LIMIT and not self._extended):
            return Ignored(port_id, f"unknown control event {event}")
        return handler(port_id, value, packet[CONTROL.size :])

    def _control(
        self, port_id: int, event: int, value: int, payload: bytes = b""
    ) -> Message | None:
        if not self.multiport:
            return None
        size = CONTROL.size + len(payload)
        head = _HEADER_CONTROL.pack(port_id, INTERNAL, size, event, value)
        return Message(self.sends_on, head + payload)

    def _extension(self, port_id: int, event: int, payload: bytes = b"") -> Message | None:
        return self._control(port_id, event, 1, payload) if self._extended else None


def _throttled(port_id: int, value: int, payload: memoryview) -> Event:
    return Throttled(port_id, bool(value))


class GuestEnd(ConfigReader, _End):
    """The driver's end of the dialect.

    `features` are the negotiated features (of F_SIZE, F_MULTIPORT, F_PORT_EVENTS).
    """

    sends_on = OUTPUT
    _handlers: ClassVar[Handlers] = {
        ControlEvent.PORT_OPEN: opened,
        ControlEvent.PORT_NAME: named,
        ControlEvent.CONSOLE_PORT: console,
        ControlEvent.CACHE_BUFFERS: lambda port_id, value, payload: CacheSet(port_id, bool(value)),
        ControlEvent.THROTTLE_PORT: _throttled,
        ControlEvent.BUFFER_LIMIT: lambda port_id, value, payload: LimitSet(
            port_id, value * LIMIT_UNIT
        ),
        ControlEvent.PORT_ADD: lambda port_id, value, payload: (
            PortAdded(port_id)
            if port_id < PORTS_MAX
            else Ignored(port_id, f"port id {port_id} is too large")
        ),
        ControlEvent.PORT_REMOVE: lambda port_id, value, payload: PortRemoved(port_id),
        ControlEvent.RESIZE: resized,
    }

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self._ports = 0

    def device_ready(self) -> Message | None:
        """Return None: the host does not wait for such a message in this dialect."""
        return None

    def port_ready(self, port_id: int) -> Message | None:
        """Return the request for the port's name, sent for every port that was added."""
        return self._control(port_id, ControlEvent.PORT_NAME, 0)

    def _ports_changed(self, ports: int) -> list[Event]:
        if ports > PORTS_MAX:
            return [Ignored(None, f"{ports} ports are more than {PORTS_MAX}")]
        ports, before = max(ports, 1), self._ports
        self._ports = ports
        if ports == before:
            return [NameStale(0)]
        added: list[Event] = [PortAdded(port_id) for port_id in range(before, ports)]
        return added or [PortRemoved(port_id) for port_id in range(ports, before)]


class HostEnd(_End):
    """The device's end of the dialect.

    `features` are the negotiated features (of F_SIZE, F_MULTIPORT, F_PORT_EVENTS).
    """

    sends_on = INPUT
    _handlers: ClassVar[Handlers] = {
        ControlEvent.PORT_OPEN: opened,
        ControlEvent.PORT_NAME: lambda port_id, value, payload: NameAsked(port_id),
        ControlEvent.THROTTLE_PORT: _throttled,
    }

    def config(self, ports: int, cols: int = 0, rows: int = 0) -> bytes:
        """Return the config space for this number of ports (the largest id plus one)."""
        return CONFIG.pack(*check_size(cols, rows), ports)

    def port_name(self, port_id: int, name: bytes) -> Message | None:
        """Return the message with the port's name."""
        return self._control(port_id, ControlEvent.PORT_NAME, 1, check_name(name))

    def console_port(self, port_id: int) -> Message | None:
        """Return the message that the port is a console."""
        return self._control(port_id, ControlEvent.CONSOLE_PORT, 1)

    def cache_buffers(self, port_id: int, on: bool) -> Message | None:
        """Return the message to keep unread data after a close, or to drop it."""
        return self._control(port_id, ControlEvent.CACHE_BUFFERS, on)

    def buffer_limit(self, port_id: int, mebibytes: int) -> Message | None:
        """Return the limit of unread data that the guest may hold for the port, in MiB.

        Raise LocalProtocolError if it is out of range.
        """
        if not 0 < mebibytes <= LIMIT_MAX:
            raise LocalProtocolError(f"a buffer limit is 1 to {LIMIT_MAX} MiB, not {mebibytes}")
        return self._control(port_id, ControlEvent.BUFFER_LIMIT, mebibytes)

    def port_add(self, port_id: int) -> Message | None:
        """Return the message that adds a port below nr_active_ports (PORT_EVENTS only)."""
        return self._extension(port_id, ControlEvent.PORT_ADD)

    def port_remove(self, port_id: int) -> Message | None:
        """Return the message that removes a port (PORT_EVENTS only).

        Without it, a config space with fewer ports can remove the last one.
        """
        return self._extension(port_id, ControlEvent.PORT_REMOVE)

    def resize(self, port_id: int, cols: int, rows: int) -> Message | None:
        """Return the message with a console's size (PORT_EVENTS only; otherwise see `config`)."""
        return self._extension(port_id, ControlEvent.RESIZE, SIZE.pack(*check_size(cols, rows)))

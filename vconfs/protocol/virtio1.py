"""The dialect of the standard, both ends (virtio 1.2 §5.3, the Console Device).

Theory of operation
-------------------
Each port has two queues of its own, which carry its data without headers: port 0 has queues 0 (to
the guest) and 1 (from it), port n has 2n+2 and 2n+3. With MULTIPORT, queues 2 and 3 carry control
messages, which the bytes of a name or a size may follow:

    control  le32 id, le16 event, le16 value

The config space (le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr) limits the ports' ids.
The limit never changes, because the queues are set up for it; messages say which ports exist. The
guest begins with DEVICE_READY, the host answers with PORT_ADD for each port, the guest with
PORT_READY, and then the host describes the port (CONSOLE_PORT, PORT_NAME, PORT_OPEN) in any order;
some hosts do so before PORT_READY. A PORT_ADD of an existing port is one more `PortAdded`, which
the owner answers again. Without MULTIPORT there is one port, 0, which is a console and whose other
side counts as open.

With EMERG_WRITE, a guest whose ports do not exist yet writes output of its console to emerg_wr, one
byte at a time.

The size in the config space is port 0's. With MULTIPORT it means nothing before that port was
added; hosts then send RESIZE, because Linux does not read the size in the config space at all.

There is no throttling: a receiver keeps its buffers instead. The owner has to avoid two traps. A
hang-up comes on the control queue and can overtake data in the port's queue, which must be emptied
first; if the port has no space for it, the hang-up must wait. And QEMU drops control messages for
which no buffer is posted, so the control ring must be kept full.

As in v8, `receive` turns one buffer into one event and never raises, and there is a method for each
kind of message. It returns a `Message`, or None if this dialect has no such message, or the port
does not exist for the other end because its id is not below max_nr_ports.
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
    ConfigWrite,
    Data,
    DeviceReady,
    Event,
    Ignored,
    Message,
    PortAdded,
    PortReady,
    PortRemoved,
    Resized,
)

__all__ = [
    "CONFIG",
    "CONTROL",
    "CONTROL_IN",
    "CONTROL_OUT",
    "EMERGENCY_WRITE",
    "FEATURES",
    "F_EMERG_WRITE",
    "F_MULTIPORT",
    "F_SIZE",
    "MAX_PORTS",
    "NAME_MAX",
    "NO_PORT",
    "PORTS_MAX",
    "ControlEvent",
    "GuestEnd",
    "HostEnd",
]

F_EMERG_WRITE: Final = 1 << 2
#: The features that both ends support by themselves. F_EMERG_WRITE also needs a link on which the
#: guest can write to the config space and the host sees these writes.
FEATURES: Final = F_SIZE | F_MULTIPORT

CONTROL_IN: Final = 2
CONTROL_OUT: Final = 3

CONTROL: Final = struct.Struct("<IHH")
#: The bytes of the config space that a guest may write, after those of CONFIG.
EMERGENCY_WRITE: Final = range(8, 12)

#: The id in messages about the device as a whole.
NO_PORT: Final = 0xFFFFFFFF
#: The default number of ports that a device has room for: the same as QEMU's, with 64 queues.
MAX_PORTS: Final = 31


class ControlEvent(IntEnum):
    """The `event` of a control message."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


class _End:
    """The base of both ends: queue numbers, framing, and the messages that both can send."""

    throttles = False
    ports_in_config = False
    header_size = 0
    #: 0 for the guest, which sends data on odd queues; 1 for the host, which uses even ones.
    _is_host: ClassVar[int]
    _handlers: ClassVar[Handlers]

    def __init__(self, features: int, max_ports: int) -> None:
        self.features = features
        self.multiport: bool = bool(features & F_MULTIPORT)
        #: The ids of ports are smaller than this.
        self.max_ports: int = max_ports if self.multiport else 1

    @property
    def queues(self) -> int:
        """The number of virtqueues that the device has."""
        return 2 * (self.max_ports + 1) if self.multiport else 2

    def data_queue(self, port_id: int) -> int:
        """Return the queue on which this end sends data of a port."""
        return (2 * port_id + 2 if port_id else 0) + 1 - self._is_host

    def receive_queue(self, port_id: int) -> int:
        """Return the queue on which this end receives data of a port."""
        return (2 * port_id + 2 if port_id else 0) + self._is_host

    def port_of(self, queue: int) -> int | None:
        """Return the port that a queue belongs to, or None if it is for control messages."""
        if queue < CONTROL_IN:
            return 0
        return None if queue <= CONTROL_OUT else queue // 2 - 1

    def data_header(self, port_id: int, size: int) -> bytes:
        """Return an empty header: data has none."""
        return b""

    def throttle(self, port_id: int, on: bool) -> Message | None:
        """Return None: a receiver that wants no more data keeps its buffers."""
        return None

    def port_open(self, port_id: int, opened: bool) -> Message | None:
        """Return the message that our side of the port was opened or closed."""
        return self._control(port_id, ControlEvent.PORT_OPEN, opened)

    def receive(self, queue: int, buffer: memoryview) -> Event:
        """Return the event for one buffer that came on `queue`, which is one of `queues`."""
        port_id = self.port_of(queue)
        return self._receive_control(buffer) if port_id is None else Data(port_id, buffer)

    def _receive_control(self, buffer: memoryview) -> Event:
        if len(buffer) < CONTROL.size:
            return Ignored(None, f"a control message of {len(buffer)} bytes is too short")
        about, event, value = CONTROL.unpack_from(buffer)
        handler = self._handlers.get(event)
        if handler is None:
            return Ignored(about, f"unknown control event {event}")
        if about >= self.max_ports and event != ControlEvent.DEVICE_READY:
            return Ignored(about, f"port id {about} of a device with {self.max_ports} ports")
        return handler(about, value, buffer[CONTROL.size :])

    def _control(
        self, port_id: int, event: int, value: int, payload: bytes = b""
    ) -> Message | None:
        """Return a message about a port, if the other end can have that port."""
        return self._message(port_id, event, value, payload) if port_id < self.max_ports else None

    def _message(
        self, port_id: int, event: int, value: int, payload: bytes = b""
    ) -> Message | None:
        if not self.multiport:
            return None
        queue = CONTROL_OUT - self._is_host
        return Message(queue, CONTROL.pack(port_id, event, value) + payload)


class GuestEnd(ConfigReader, _End):
    """The driver's end of the dialect.

    `features` are the negotiated features. `receive_config` sets how many ports there can be.
    `resize_rows_first` is for hosts that send rows before columns.
    """

    _is_host = 0
    _handlers: ClassVar[Handlers] = {
        ControlEvent.PORT_ADD: lambda port_id, value, payload: PortAdded(port_id),
        ControlEvent.PORT_REMOVE: lambda port_id, value, payload: PortRemoved(port_id),
        ControlEvent.CONSOLE_PORT: console,
        ControlEvent.RESIZE: resized,
        ControlEvent.PORT_OPEN: opened,
        ControlEvent.PORT_NAME: named,
    }

    def __init__(self, features: int, *, resize_rows_first: bool = False) -> None:
        super().__init__(features, MAX_PORTS)
        self._rows_first = resize_rows_first
        self._has_port_0 = not self.multiport
        self._max_nr_ports: int | None = None  # as first read from the config space

    def _receive_control(self, buffer: memoryview) -> Event:
        event = super()._receive_control(buffer)
        if isinstance(event, Resized) and self._rows_first:
            return Resized(event.id, event.rows, event.cols)
        if isinstance(event, PortAdded | PortRemoved) and event.id == 0:
            self._has_port_0 = isinstance(event, PortAdded)
        return event

    def _ports_changed(self, ports: int) -> list[Event]:
        if self._max_nr_ports is None:
            self._max_nr_ports = ports
            self.max_ports: int = min(max(ports, 1), PORTS_MAX)
            if self.max_ports != ports:
                return [Ignored(None, f"{ports} ports are not 1 to {PORTS_MAX}")]
        elif self._max_nr_ports != ports:
            return [Ignored(None, f"max_nr_ports is {ports} and was {self._max_nr_ports}")]
        return []

    def _size_changed(self, cols: int, rows: int) -> list[Event]:
        return super()._size_changed(cols, rows) if self._has_port_0 else []

    def emergency_writes(self, data: Buffer) -> list[ConfigWrite]:
        """Return the writes for output of port 0 before the port exists, or none if impossible."""
        if not self.features & F_EMERG_WRITE:
            return []
        at, size = EMERGENCY_WRITE.start, len(EMERGENCY_WRITE)
        return [ConfigWrite(at, byte.to_bytes(size, "little")) for byte in bytes(data)]

    def device_ready(self) -> Message | None:
        """Return the message that the driver is up, so that the host announces the ports."""
        return self._message(NO_PORT, ControlEvent.DEVICE_READY, 1)

    def port_ready(self, port_id: int) -> Message | None:
        """Return the message that a port was added, sent for every announced port."""
        return self._control(port_id, ControlEvent.PORT_READY, 1)


class HostEnd(_End):
    """The device's end of the dialect.

    `features` are the negotiated features, and the ids of ports are smaller than `max_ports`.
    `resize_rows_first` is for guests that read rows before columns.
    """

    _is_host = 1
    _handlers: ClassVar[Handlers] = {
        ControlEvent.DEVICE_READY: lambda port_id, value, payload: DeviceReady(bool(value)),
        ControlEvent.PORT_READY: lambda port_id, value, payload: PortReady(port_id, bool(value)),
        ControlEvent.PORT_OPEN: opened,
    }

    def __init__(
        self,
        features: int,
        *,
        max_ports: int = MAX_PORTS,
        resize_rows_first: bool = False,
    ) -> None:
        if not 0 < max_ports <= PORTS_MAX:
            raise LocalProtocolError(f"a device has 1 to {PORTS_MAX} ports, not {max_ports}")
        super().__init__(features, max_ports)
        self._rows_first = resize_rows_first

    def config(self, ports: int, cols: int = 0, rows: int = 0) -> bytes:
        """Return the config space, which does not depend on the number of `ports`."""
        return CONFIG.pack(*check_size(cols, rows), self.max_ports) + bytes(len(EMERGENCY_WRITE))

    def receive_config_write(self, offset: int, data: Buffer) -> Event:
        """Return the event for a guest's write to the config space: a byte for port 0, or nothing.

        With F_EMERG_WRITE a guest may write at any time, even before it has set up a queue.
        """
        if offset != EMERGENCY_WRITE.start or not data:
            return Ignored(None, f"{len(data)} bytes written to the config space at {offset}")
        return Data(0, memoryview(data)[:1])

    def port_add(self, port_id: int) -> Message | None:
        """Return the message that adds a port."""
        return self._control(port_id, ControlEvent.PORT_ADD, 1)

    def port_remove(self, port_id: int) -> Message | None:
        """Return the message that removes a port."""
        return self._control(port_id, ControlEvent.PORT_REMOVE, 1)

    def port_name(self, port_id: int, name: bytes) -> Message | None:
        """Return the message with the port's name."""
        return self._control(port_id, ControlEvent.PORT_NAME, 1, check_name(name))

    def console_port(self, port_id: int) -> Message | None:
        """Return the message that the port is a console."""
        return self._control(port_id, ControlEvent.CONSOLE_PORT, 1)

    def resize(self, port_id: int, cols: int, rows: int) -> Message | None:
        """Return the message with the size of the console on a port."""
        size = check_size(cols, rows)
        fields = reversed(size) if self._rows_first else size
        return self._control(port_id, ControlEvent.RESIZE, 1, SIZE.pack(*fields))

    def cache_buffers(self, port_id: int, on: bool) -> Message | None:
        """Return None: the standard leaves this to the guest."""
        return None

    def buffer_limit(self, port_id: int, mebibytes: int) -> Message | None:
        """Return None: the guest's buffers are the limit."""
        return None

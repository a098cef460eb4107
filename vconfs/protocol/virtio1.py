"""The standard's dialect, spoken by both ends (virtio 1.2 §5.3, the Console Device).

Theory of operation
-------------------
Each port has two queues of its own, and data in them is bare bytes: port 0 has queues 0 (to the
guest) and 1 (from it), port n 2n+2 and 2n+3. With MULTIPORT queues 2 and 3 carry control messages,
after which the bytes of a name or a size may stand:

    control  le32 id, le16 event, le16 value

The config space (le16 cols, le16 rows, le32 max_nr_ports, le32 emerg_wr) bounds the ports' ids;
which ports there are is said by messages. The guest begins with DEVICE_READY, the host answers
PORT_ADD for each port, the guest PORT_READY, and then the host tells what the port is
(CONSOLE_PORT, PORT_NAME, PORT_OPEN) in whatever order it likes; some do so before PORT_READY.
Without MULTIPORT there is one port, 0, which is a console and whose other side counts as open.

There is no throttling: a receiver holds its buffers back. Two traps are the owner's business. A
hang-up comes on the control queue and can overtake data in the port's queue, so that queue must be
looked at first. And QEMU drops control messages for which no buffer is posted, so that ring must be
kept full.

As in v8, `receive` makes one event of one buffer and never raises, and a method for each thing to
send returns a `Message`, or None where there is nothing to say in this dialect.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import ClassVar, Final

from vconfs.protocol._control import (
    NAME_MAX,
    PORTS_MAX,
    SIZE,
    Handlers,
    check_name,
    named,
    opened,
    resized,
)
from vconfs.protocol.events import (
    ConsolePort,
    Data,
    DeviceReady,
    Event,
    Ignored,
    Message,
    PortAdded,
    PortOpened,
    PortReady,
    PortRemoved,
    Resized,
)

__all__ = ["NAME_MAX", "PORTS_MAX", "GuestEnd", "HostEnd"]

F_SIZE: Final = 1 << 0
F_MULTIPORT: Final = 1 << 1
F_EMERG_WRITE: Final = 1 << 2
FEATURES: Final = F_SIZE | F_MULTIPORT

CONTROL_IN: Final = 2
CONTROL_OUT: Final = 3

CONTROL: Final = struct.Struct("<IHH")
#: The config space without the emergency write field, which one may write but not read.
CONFIG: Final = struct.Struct("<HHI")

#: The id of messages that are about the device as a whole.
NO_PORT: Final = 0xFFFFFFFF
DEFAULT_MAX_PORTS: Final = 31


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
    """What both ends share: queue numbers, framing, and the messages that go both ways."""

    throttles = False
    ports_in_config = False
    header_size = 0
    #: 0: this end sends data on odd queues (the guest), 1: on even ones.
    _is_host: ClassVar[int]
    _handlers: ClassVar[Handlers]

    def __init__(self, features: int, max_ports: int, *, rows_first: bool) -> None:
        self.features = features
        self.multiport = bool(features & F_MULTIPORT)
        #: Ids are smaller than this.
        self.max_ports = max_ports if self.multiport else 1
        self._rows_first = rows_first

    @property
    def queues(self) -> int:
        """How many virtqueues the device has."""
        return 2 * (self.max_ports + 1) if self.multiport else 2

    def data_queue(self, id: int) -> int:
        """The queue on which this end sends data of a port."""
        return (2 * id + 2 if id else 0) + 1 - self._is_host

    def receive_queue(self, id: int) -> int:
        """The queue on which this end receives data of a port."""
        return (2 * id + 2 if id else 0) + self._is_host

    def port_of(self, queue: int) -> int | None:
        """The port that a queue belongs to; None: it is for control messages."""
        if queue < CONTROL_IN:
            return 0
        return None if queue <= CONTROL_OUT else queue // 2 - 1

    def data_header(self, id: int, size: int) -> bytes:
        """Nothing stands in front of data."""
        return b""

    def throttle(self, id: int, on: bool) -> Message | None:
        """Nothing: whoever wants no more holds its buffers back."""
        return None

    def port_open(self, id: int, opened: bool) -> Message | None:
        """Say that our side of the port was opened, or closed."""
        return self._control(id, ControlEvent.PORT_OPEN, opened)

    def receive(self, queue: int, buffer: memoryview) -> Event:
        """Make an event of one buffer that came in on `queue`."""
        id = self.port_of(queue)
        if id is not None or not self.multiport:
            return Data(id or 0, buffer)
        if len(buffer) < CONTROL.size:
            return Ignored(None, f"a control message of {len(buffer)} bytes is too short")
        about, event, value = CONTROL.unpack_from(buffer)
        handler = self._handlers.get(event)
        if handler is None:
            return Ignored(about, f"unknown control event {event}")
        if about >= self.max_ports and event != ControlEvent.DEVICE_READY:
            return Ignored(about, f"port id {about} of a device with {self.max_ports} ports")
        return self._in_order(handler(about, value, buffer[CONTROL.size :]))

    def _in_order(self, event: Event) -> Event:
        if self._rows_first and isinstance(event, Resized):
            return Resized(event.id, event.rows, event.cols)
        return event

    def _control(self, id: int, event: int, value: int, payload: bytes = b"") -> Message | None:
        if not self.multiport:
            return None
        queue = CONTROL_OUT - self._is_host
        return Message(queue, CONTROL.pack(id, event, value) + payload)


class GuestEnd(_End):
    """The driver's end of the dialect.

    `features` are the negotiated ones. How many ports there can be is learnt by `receive_config`.
    `resize_rows_first`: for hosts that send rows before columns.
    """

    _is_host = 0
    _handlers: ClassVar[Handlers] = {
        ControlEvent.PORT_ADD: lambda id, value, payload: PortAdded(id),
        ControlEvent.PORT_REMOVE: lambda id, value, payload: PortRemoved(id),
        ControlEvent.CONSOLE_PORT: lambda id, value, payload: (
            ConsolePort(id) if value else Ignored(id, "CONSOLE_PORT with value 0")
        ),
        ControlEvent.RESIZE: resized,
        ControlEvent.PORT_OPEN: opened,
        ControlEvent.PORT_NAME: named,
    }

    def __init__(self, features: int, *, resize_rows_first: bool = False) -> None:
        super().__init__(features, DEFAULT_MAX_PORTS, rows_first=resize_rows_first)
        self._started = False
        self._size = (0, 0)

    def receive_config(self, config: bytes) -> list[Event]:
        """Say what a config space means, at the start and after each config interrupt."""
        if len(config) < CONFIG.size:
            return [Ignored(None, f"a config space of {len(config)} bytes is too short")]
        cols, rows, ports = CONFIG.unpack_from(config)
        events: list[Event] = []
        if self.multiport and not self._started:
            if not 0 < ports <= PORTS_MAX:
                events.append(Ignored(None, f"{ports} ports are not 1 to {PORTS_MAX}"))
            self.max_ports = min(max(ports, 1), PORTS_MAX)
        elif not self._started:
            events += [PortAdded(0), ConsolePort(0), PortOpened(0, True)]
        self._started = True
        if self.features & F_SIZE and (cols, rows) != self._size:
            self._size = (cols, rows)
            events.append(Resized(0, cols, rows))
        return events

    def device_ready(self) -> Message | None:
        """Ask for the ports to be announced: the driver is up."""
        return self._control(NO_PORT, ControlEvent.DEVICE_READY, 1)

    def port_ready(self, id: int) -> Message | None:
        """Say that a port has been taken up: what the guest does for every port announced."""
        return self._control(id, ControlEvent.PORT_READY, 1)


class HostEnd(_End):
    """The device's end of the dialect.

    `features` are the negotiated ones, and ids are smaller than `max_ports`.
    `resize_rows_first`: for guests that read rows before columns.
    """

    _is_host = 1
    _handlers: ClassVar[Handlers] = {
        ControlEvent.DEVICE_READY: lambda id, value, payload: DeviceReady(bool(value)),
        ControlEvent.PORT_READY: lambda id, value, payload: PortReady(id, bool(value)),
        ControlEvent.PORT_OPEN: opened,
    }

    def __init__(
        self,
        features: int,
        *,
        max_ports: int = DEFAULT_MAX_PORTS,
        resize_rows_first: bool = False,
    ) -> None:
        super().__init__(features, max_ports, rows_first=resize_rows_first)

    def config(self, ports: int, cols: int = 0, rows: int = 0) -> bytes:
        """The config space; how many ports there are now does not matter."""
        return CONFIG.pack(cols, rows, self.max_ports) + bytes(4)

    def port_add(self, id: int) -> Message | None:
        """Announce a port."""
        return self._control(id, ControlEvent.PORT_ADD, 1)

    def port_remove(self, id: int) -> Message | None:
        """Take a port away."""
        return self._control(id, ControlEvent.PORT_REMOVE, 1)

    def port_name(self, id: int, name: bytes) -> Message | None:
        """Tell the port's name."""
        return self._control(id, ControlEvent.PORT_NAME, 1, check_name(name))

    def console_port(self, id: int) -> Message | None:
        """Tell that the port is a console."""
        return self._control(id, ControlEvent.CONSOLE_PORT, 1)

    def resize(self, id: int, cols: int, rows: int) -> Message | None:
        """Tell the size of the console on a port."""
        first, second = (rows, cols) if self._rows_first else (cols, rows)
        return self._control(id, ControlEvent.RESIZE, 1, SIZE.pack(first, second))

    def cache_buffers(self, id: int, on: bool) -> Message | None:
        """Nothing: the standard leaves that to the guest."""
        return None

    def buffer_limit(self, id: int, mebibytes: int) -> Message | None:
        """Nothing: the guest's buffers are the limit."""
        return None

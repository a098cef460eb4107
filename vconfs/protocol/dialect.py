"""The interface of both dialects, so that the layers above need not know which one is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from attrs import frozen

from vconfs.protocol import v8, virtio1
from vconfs.protocol.events import Buffer, ConfigWrite, Event, Message


class End(Protocol):
    """The common part of the guest end and the host end of a dialect.

    Each message is None where the dialect, or the negotiated features, have none for it.
    """

    multiport: bool
    #: True if back-pressure on a port is a message. Otherwise the receiver keeps its buffers.
    throttles: bool
    #: True if the config space defines which ports exist. Otherwise messages do.
    ports_in_config: bool
    header_size: int

    @property
    def queues(self) -> int:
        """The number of virtqueues that the dialect uses."""

    def data_queue(self, port_id: int) -> int:
        """Return the queue on which this end sends data of a port."""

    def receive_queue(self, port_id: int) -> int:
        """Return the queue on which this end receives data of a port."""

    def port_of(self, queue: int) -> int | None:
        """Return the port that has `queue` to itself, or None (several ports, or control)."""

    def data_header(self, port_id: int, size: int) -> bytes:
        """Return the header of data; `size` is the length of the whole write request."""

    def port_open(self, port_id: int, opened: bool) -> Message | None:
        """Return the message that our side of the port was opened or closed."""

    def throttle(self, port_id: int, on: bool) -> Message | None:
        """Return the request to stop sending on this port, or to resume."""

    def receive(self, queue: int, buffer: memoryview) -> Event:
        """Return the event for one buffer that came on `queue`, which is one of `queues`."""


class Guest(End, Protocol):
    """The driver's end of a dialect."""

    def receive_config(self, config: bytes) -> list[Event]:
        """Return the events for the changes since the config space was last received."""

    def emergency_writes(self, data: Buffer) -> list[ConfigWrite]:
        """Return the writes for output of port 0 before the port exists, or none if impossible."""

    def device_ready(self) -> Message | None:
        """Return the message that the driver is up."""

    def port_ready(self, port_id: int) -> Message | None:
        """Return the message that is sent for every port that was added."""


class Host(End, Protocol):
    """The device's end of a dialect."""

    #: The ids of the guest's ports are smaller than this.
    max_ports: int

    def config(self, ports: int, cols: int = 0, rows: int = 0) -> bytes:
        """Return the config space for this number of ports (the largest id plus one)."""

    def port_name(self, port_id: int, name: bytes) -> Message | None:
        """Return the message with the port's name."""

    def console_port(self, port_id: int) -> Message | None:
        """Return the message that the port is a console."""

    def cache_buffers(self, port_id: int, on: bool) -> Message | None:
        """Return the message to keep unread data after a close, or to drop it."""

    def buffer_limit(self, port_id: int, mebibytes: int) -> Message | None:
        """Return the limit of unread data that the guest may hold for the port."""

    def port_add(self, port_id: int) -> Message | None:
        """Return the message that adds a port."""

    def port_remove(self, port_id: int) -> Message | None:
        """Return the message that removes a port."""

    def resize(self, port_id: int, cols: int, rows: int) -> Message | None:
        """Return the message with the size of a port's console."""


@frozen
class Dialect:
    """A dialect: its two ends, and the features that they support."""

    guest: Callable[[int], Guest]
    host: Callable[[int], Host]
    features: int


DIALECTS: Final[Mapping[str, Dialect]] = {
    "v8": Dialect(v8.GuestEnd, v8.HostEnd, v8.FEATURES),
    "virtio1": Dialect(virtio1.GuestEnd, virtio1.HostEnd, virtio1.FEATURES),
}

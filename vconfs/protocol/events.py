"""The events that the ends of a console protocol return to their owner, one frozen class each.

Both dialects return the same events, so that the layers above need not know which one is used.
`id` is always the port's number on its device.
"""

from __future__ import annotations

from typing import TypeAlias

from attrs import frozen

Buffer: TypeAlias = bytes | bytearray | memoryview


@frozen
class PortAdded:
    """The host has a port with this id."""

    id: int


@frozen
class PortRemoved:
    """The host has removed this port."""

    id: int


@frozen
class PortReady:
    """The guest has added a port (virtio1 PORT_READY), or failed to."""

    id: int
    ready: bool


@frozen
class PortOpened:
    """The other side opened (connected) its end of the port, or closed it."""

    id: int
    opened: bool


@frozen
class PortNamed:
    """The port's name, without the trailing NUL that some hosts send; empty if it has no name."""

    id: int
    name: bytes


@frozen
class NameAsked:
    """The guest asks for the port's name (v8)."""

    id: int


@frozen
class NameStale:
    """The port's name may have changed: the guest should ask again (v8)."""

    id: int


@frozen
class ConsolePort:
    """This port is a console."""

    id: int


@frozen
class CacheSet:
    """`cache` is true if unread data is kept after a close of the port."""

    id: int
    cache: bool


@frozen
class Throttled:
    """The other side wants no more data on this port, or wants it again."""

    id: int
    throttled: bool


@frozen
class LimitSet:
    """The most unread bytes that the guest may hold for this port before it throttles the host."""

    id: int
    limit: int


@frozen
class Resized:
    """The size of the console on this port, in characters."""

    id: int
    cols: int
    rows: int


@frozen
class DeviceReady:
    """The guest's driver is up (virtio1 DEVICE_READY), or gave up."""

    ready: bool


@frozen
class Data:
    """Bytes for a port.

    `data` is a view of the received buffer: use or copy it before the buffer is given back.
    `size` is the length of the whole write request in its first buffer and 0 in the others, or
    None if the dialect does not have it (virtio1).
    """

    id: int
    data: memoryview
    size: int | None = None


@frozen
class Ignored:
    """A message that the peer may not send. It is counted and has no other effect.

    `id` is the port that it was about, or None if that is unknown.
    """

    id: int | None
    reason: str


Event: TypeAlias = (
    PortAdded
    | PortRemoved
    | PortReady
    | PortOpened
    | PortNamed
    | NameAsked
    | NameStale
    | ConsolePort
    | CacheSet
    | Throttled
    | LimitSet
    | Resized
    | DeviceReady
    | Data
    | Ignored
)


@frozen
class ConfigWrite:
    """Bytes to write to the device's config space (guest end)."""

    offset: int
    data: bytes


@frozen
class Message:
    """A buffer to send: its queue and its bytes."""

    queue: int
    data: bytes

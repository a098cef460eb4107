"""The events that the back-end of vhost-user returns to its owner, one frozen class each."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from attrs import define, field, frozen

from vconfs.protocol._vhost_user_memory import Region
from vconfs.protocol._vhost_user_messages import Refused
from vconfs.protocol.virtqueue import Layout


class Notifier(Enum):
    """The purpose of a ring's descriptor."""

    KICK = "kick"
    CALL = "call"
    ERR = "err"


@frozen
class RingSetup:
    """The values needed to serve a ring.

    `layout` has guest addresses, `base` is the entry of the available ring to begin with. A
    descriptor is None if none was sent: then in-band messages or polling are used.
    """

    layout: Layout
    base: int
    kick_fd: int | None
    call_fd: int | None
    err_fd: int | None
    enabled: bool


@frozen
class FeaturesSet:
    """The features that the front-end has chosen, without VHOST_USER_F_PROTOCOL_FEATURES."""

    features: int


@frozen
class MemoryTableSet:
    """The memory now consists of these regions, each in the file at the same index of `fds`.

    The descriptors belong to the owner, who maps and closes them. A `RingMoved` follows for each
    started ring.
    """

    regions: tuple[Region, ...]
    fds: tuple[int, ...]


@frozen
class MemoryRegionAdded:
    """A region was added. Otherwise like `MemoryTableSet`."""

    region: Region
    fd: int


@frozen
class MemoryRegionRemoved:
    """A region was removed: unmap it. A `RingMoved` follows for each started ring."""

    region: Region


@frozen
class RingStarted:
    """A ring may be served, without visible effects as long as it is not enabled."""

    index: int
    setup: RingSetup


@frozen
class RingMoved:
    """The memory of a started ring has changed: continue in the new memory, at this layout."""

    index: int
    layout: Layout


@frozen
class RingStopped:
    """A ring must not be touched any more.

    If `answer` is true, the front-end waits for the entry at which it stopped: call
    `Backend.ring_stopped`.
    """

    index: int
    answer: bool


@frozen
class RingEnabled:
    """A started ring was enabled or disabled."""

    index: int
    enabled: bool


@frozen
class NotifierChanged:
    """A started ring has another notification descriptor, or none."""

    index: int
    notifier: Notifier
    fd: int | None


@frozen
class Kicked:
    """The front-end has put buffers into a ring (VRING_KICK, in-band)."""

    index: int


@frozen
class ConfigWritten:
    """The guest wrote to the config space, or a migration restores it."""

    offset: int
    data: bytes
    migration: bool


@frozen
class ChannelSet:
    """The socket for requests to the front-end. The descriptor belongs to the owner."""

    fd: int


@frozen
class DeviceReset:
    """The device was reset, and all rings were stopped."""


BackendEvent: TypeAlias = (
    FeaturesSet
    | MemoryTableSet
    | MemoryRegionAdded
    | MemoryRegionRemoved
    | RingStarted
    | RingMoved
    | RingStopped
    | RingEnabled
    | NotifierChanged
    | Kicked
    | ConfigWritten
    | ChannelSet
    | DeviceReset
    | Refused
)


@define
class Handled:
    """The result of a message: act on `events`, then send `reply`, then close `close`."""

    events: list[BackendEvent] = field(factory=list)
    reply: bytes = b""
    close: list[int] = field(factory=list)

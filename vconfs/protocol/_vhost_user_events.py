"""What the back-end of vhost-user tells its owner: one frozen class for each thing."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from attrs import define, field, frozen

from vconfs.protocol._vhost_user_memory import Region
from vconfs.protocol._vhost_user_messages import Refused
from vconfs.protocol.virtqueue import Layout


class Notifier(Enum):
    """What a ring's descriptor is for."""

    KICK = "kick"
    CALL = "call"
    ERR = "err"


@frozen
class RingSetup:
    """What is needed to serve a ring.

    `layout` has guest addresses, `base` is the entry of the available ring to begin with. A
    descriptor is None where none was sent: then there are in-band messages, or polling.
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
    """The memory is now these regions, each in the file at the same place of `fds`.

    The descriptors are the owner's: map them and close them. A `RingMoved` follows for each ring
    that is started.
    """

    regions: tuple[Region, ...]
    fds: tuple[int, ...]


@frozen
class MemoryRegionAdded:
    """There is one more region; the rest as with `MemoryTableSet`."""

    region: Region
    fd: int


@frozen
class MemoryRegionRemoved:
    """A region is gone: unmap it. A `RingMoved` follows for each ring that is started."""

    region: Region


@frozen
class RingStarted:
    """A ring may be served, without effects to the outside as long as it is not enabled."""

    index: int
    setup: RingSetup


@frozen
class RingMoved:
    """The memory has changed under a started ring: go on in the new memory, at this layout."""

    index: int
    layout: Layout


@frozen
class RingStopped:
    """A ring must not be touched any more.

    `answer`: the front-end waits to be told where it stopped, see `Backend.ring_stopped`.
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
    """A started ring has another descriptor to notify by, or none."""

    index: int
    notifier: Notifier
    fd: int | None


@frozen
class Kicked:
    """The front-end has put buffers into a ring (VRING_KICK, in-band)."""

    index: int


@frozen
class ConfigWritten:
    """The guest wrote into the config space, or a migration restores it."""

    offset: int
    data: bytes
    migration: bool


@frozen
class ChannelSet:
    """The socket for requests to the front-end; the descriptor is the owner's."""

    fd: int


@frozen
class StatusSet:
    """The device status of the standard; 0: reset."""

    status: int


@frozen
class DeviceReset:
    """The device is as new; all rings were stopped."""


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
    | StatusSet
    | DeviceReset
    | Refused
)


@define
class Handled:
    """What came of a message: act on `events`, then send `reply`, then close `close`."""

    events: list[BackendEvent] = field(factory=list)
    reply: bytes = b""
    close: list[int] = field(factory=list)

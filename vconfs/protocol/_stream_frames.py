"""The frames on a stream and the events that they make; see stream.py."""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from attrs import frozen

from vconfs.protocol._stream_hello import Hello

HEADER: Final = struct.Struct("<IB")
CREDIT_FRAME: Final = struct.Struct("<IBII")
CREDITED: Final = struct.Struct("<II")

INPUT: Final = 0
OUTPUT: Final = 1
#: Added to the number of a queue: the sender wants to know when this frame was seen.
WATCHED: Final = 16
CREDIT: Final = 240
CONFIG: Final = 241
BYE: Final = 242
NAME: Final = 243

#: The largest payload of a frame: a write of 1 MiB, and any header before it.
PAYLOAD_MAX: Final = (1 << 20) + 4096
BYE_MAX: Final = 256
NAME_MAX: Final = 255
#: The feature bit with which a host end asks for a NAME, and a guest end says that it has one.
NAMES: Final = 1 << 63
#: Bytes of a window that an end leaves for control messages, if it needs to.
RESERVE: Final = 64
#: The most bytes under way beside a full window: two CREDIT frames, as many more as there are
#: frames in RESERVE, and a BYE.
EXCESS_MAX: Final = (2 + RESERVE // HEADER.size) * CREDIT_FRAME.size + HEADER.size + BYE_MAX
#: The value of `Connection.free` without a window.
UNLIMITED: Final = 1 << 62


@frozen
class Frame:
    """A buffer of one of v8's queues.

    `payload` stays valid while it is referenced. Pass its size to `Connection.acknowledge` when it
    was handed on.
    """

    queue: int
    payload: memoryview
    watched: bool = False


@frozen
class ConfigChanged:
    """The host's new config space, to be acknowledged like a frame."""

    config: bytes


@frozen
class GuestNamed:
    """The guest's name, of which nothing was checked, to be acknowledged like a frame."""

    name: str
    size: int


@frozen
class CreditReceived:
    """The peer has handed `size` bytes on, and has seen the `seen` oldest watched frames."""

    size: int
    seen: int = 0


@frozen
class Closed:
    """The peer left, with the reason that it sent or how the stream ended. Nothing follows."""

    reason: str


Event: TypeAlias = Hello | Frame | ConfigChanged | GuestNamed | CreditReceived | Closed

"""The layout of vhost-user messages, and a parser that finds them in a socket's bytes."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from attrs import frozen

from vconfs.protocol._input import Input
from vconfs.protocol.errors import RemoteProtocolError

#: The feature bit that enables protocol features.
F_PROTOCOL_FEATURES: Final = 1 << 30

# Protocol features.
PF_MQ: Final = 1 << 0
PF_REPLY_ACK: Final = 1 << 3
PF_BACKEND_REQ: Final = 1 << 5
PF_CONFIG: Final = 1 << 9
PF_RESET_DEVICE: Final = 1 << 13
PF_INBAND_NOTIFICATIONS: Final = 1 << 14
PF_CONFIGURE_MEM_SLOTS: Final = 1 << 15

# Flags of a message.
VERSION: Final = 1
VERSION_MASK: Final = 3
REPLY: Final = 1 << 2
NEED_REPLY: Final = 1 << 3

HEADER: Final = struct.Struct("=III")  # request, flags, size of the payload
NOTHING: Final = struct.Struct("=")
U64: Final = struct.Struct("=Q")
VRING_STATE: Final = struct.Struct("=II")  # index, num
VRING_ADDR: Final = struct.Struct("=IIQQQQ")  # index, flags, descriptor, used, available, log
MEM_TABLE: Final = struct.Struct("=II")  # number of regions, padding; the regions follow
REGION: Final = struct.Struct("=QQQQ")  # guest address, size, user address, mmap offset
MEM_REG: Final = struct.Struct("=Q32s")  # padding, a region
CONFIG: Final = struct.Struct("=III")  # offset, size, flags; the bytes follow

#: In the u64 of SET_VRING_KICK, _CALL and _ERR: the ring's index, and a flag for no descriptor.
VRING_INDEX: Final = 0xFF
VRING_NO_FD: Final = 1 << 8

CONFIG_WRITABLE: Final = 0  # flags of SET_CONFIG: the guest wrote
CONFIG_MIGRATION: Final = 1  # a migration restores the config space

PAYLOAD_MAX: Final = 4096
FDS_MAX: Final = 8
#: The most regions in a SET_MEM_TABLE; ADD_MEM_REG can add more.
TABLE_REGIONS_MAX: Final = 8
CONFIG_MAX: Final = 256
QUEUES_MAX: Final = VRING_INDEX + 1


class Request(IntEnum):
    """The requests of the front-end to the back-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """The requests of the back-end to the front-end, on a channel of their own."""

    CONFIG_CHANGE_MSG = 2
    VRING_CALL = 4
    VRING_ERR = 5


@frozen
class Message:
    """A received message, with the descriptors that came with it."""

    request: int
    flags: int
    payload: bytes
    fds: tuple[int, ...] = ()

    @property
    def needs_reply(self) -> bool:
        """True if the sender asks for an acknowledgement."""
        return bool(self.flags & NEED_REPLY)


class Outgoing(NamedTuple):
    """A message to send: its bytes, its descriptors, and True if a reply will come.

    The descriptors stay the caller's: they can be closed when the message was sent.
    """

    data: bytes
    fds: tuple[int, ...] = ()
    answered: bool = False


@frozen
class Refused:
    """A message of the peer that had no effect, to be counted, and logged once."""

    request: int
    reason: str


def pack(request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return the bytes of a message."""
    return HEADER.pack(request, VERSION | flags, len(payload)) + payload


def unpack(
    message: Message, layout: struct.Struct, kind: type[Request] | type[BackendRequest] = Request
) -> tuple[Any, ...]:
    """Unpack a payload. Raise RemoteProtocolError if its size is not exactly that of `layout`."""
    if len(message.payload) != layout.size:
        raise RemoteProtocolError(
            f"{name_of(message.request, kind)} with a payload of {len(message.payload)} bytes, "
            f"not {layout.size}"
        )
    return layout.unpack(message.payload)


def name_of(request: int, kind: type[Request] | type[BackendRequest] = Request) -> str:
    """Return the name of a request, for an error."""
    try:
        return kind(request).name
    except ValueError:
        return f"request {request}"


class Parser:
    """A parser of the messages that come on one socket.

    A message's descriptors are those that come with the bytes of its header. The kernel may join
    messages that were sent separately, and then returns the descriptors of the last one: receive no
    more than `wanted` bytes at once.

    Descriptors belong to the parser from `feed` until `next_message` returns their message.
    `release` returns the others.
    """

    def __init__(self) -> None:
        self._input = Input()
        self._fed = 0  # total number of bytes
        self._start = 0  # offset at which the incomplete message starts
        self._came: deque[tuple[int, int]] = deque()  # offset of a descriptor, the descriptor
        self._header: tuple[int, int, int] | None = None
        self._fds: tuple[int, ...] = ()
        self._error: RemoteProtocolError | None = None

    @property
    def wanted(self) -> int:
        """The number of bytes that are missing from the next header or payload."""
        return (self._header[2] if self._header else HEADER.size) - len(self._input)

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Add received bytes, and the descriptors that came with the first of them."""
        self._came.extend((self._fed, fd) for fd in fds)
        self._fed += len(data)
        self._input.feed(data)

    def next_message(self) -> Message | None:
        """Return the next complete message, or None if it has not come yet.

        Raise RemoteProtocolError if the bytes are not a message, and again in each further call.
        """
        if self._error is not None:
            raise self._error
        try:
            if self._header is None:
                head = self._input.take(HEADER.size)
                if head is None:
                    return None
                self._header = HEADER.unpack(head)
                self._check(*self._header)
            request, flags, size = self._header
            payload = self._input.take(size)
            if payload is None:
                return None
            self._start += HEADER.size + size
            if self._came and self._came[0][0] < self._start:
                raise RemoteProtocolError("descriptors came with a payload, not with a header")
        except RemoteProtocolError as error:
            self._error = error
            raise
        fds, self._fds, self._header = self._fds, (), None
        return Message(request, flags, bytes(payload), fds)

    def release(self) -> list[int]:
        """Return the descriptors of messages that were not returned. The caller closes them."""
        held = [*self._fds, *(fd for _, fd in self._came)]
        self._fds = ()
        self._came.clear()
        return held

    @property
    def ends_inside(self) -> bool:
        """True if a part of a message has come, so that the end of the socket would cut it off."""
        return self._header is not None or len(self._input) > 0

    def _check(self, request: int, flags: int, size: int) -> None:
        end = self._start + HEADER.size
        while self._came and self._came[0][0] < end:
            self._fds += (self._came.popleft()[1],)
        if flags & VERSION_MASK != VERSION:
            raise RemoteProtocolError(f"version {flags & VERSION_MASK} in flags {flags:#x}")
        if size > PAYLOAD_MAX:
            raise RemoteProtocolError(f"a payload of {size} bytes is larger than {PAYLOAD_MAX}")
        if len(self._fds) > FDS_MAX:
            raise RemoteProtocolError(f"{len(self._fds)} descriptors in a message")

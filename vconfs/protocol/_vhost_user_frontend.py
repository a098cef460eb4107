"""The front-end of vhost-user: a method for each request, and the back-end's replies."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, TypeAlias

from attrs import frozen

from vconfs.protocol import _vhost_user_messages as wire
from vconfs.protocol._vhost_user_memory import Region
from vconfs.protocol._vhost_user_messages import (
    BackendRequest,
    Message,
    Outgoing,
    Refused,
    Request,
    name_of,
    pack,
    unpack,
)
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError
from vconfs.protocol.virtqueue import Layout


@frozen
class Reply:
    """The back-end's reply to a request.

    `value` is the requested number (features, a count, the entry at which a ring stopped, the
    status), `data` the bytes of the config space. `refused` is true if the back-end refused the
    request.
    """

    request: Request
    value: int = 0
    data: bytes = b""
    refused: bool = False


@frozen
class ConfigStale:
    """The config space has changed: read it again."""


@frozen
class VringCalled:
    """The back-end has used buffers of a ring (in-band)."""

    index: int


@frozen
class VringBroken:
    """A ring is broken, and the back-end has stopped serving it (in-band)."""

    index: int


FrontendEvent: TypeAlias = ConfigStale | VringCalled | VringBroken | Refused


@frozen
class Asked:
    """The result of a request of the back-end: act on `event`, then send `reply`."""

    event: FrontendEvent
    reply: bytes = b""


#: Requests that have a reply of their own. Others can only be acknowledged.
_REPLIES: Final = frozenset(
    {
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_VRING_BASE,
        Request.GET_CONFIG,
    }
)


class Frontend:
    """The front-end's state for one connection to a back-end with `queues` rings.

    Each method returns a message to send. If its `Outgoing.answered` is true, a reply comes, in the
    order of the requests. With REPLY_ACK all requests have a reply.
    """

    def __init__(self, queues: int) -> None:
        if not 0 < queues <= wire.QUEUES_MAX:
            raise LocalProtocolError(f"{queues} queues, not 1 to {wire.QUEUES_MAX}")
        self._queues = queues
        #: The negotiated protocol features.
        self.protocol_features: int = 0
        self._asked: deque[tuple[Request, bytes]] = deque()  # requests that wait for their reply

    @property
    def waiting(self) -> int:
        """The number of requests that wait for their reply."""
        return len(self._asked)

    # Requests

    def set_owner(self) -> Outgoing:
        """Begin the session."""
        return self._ask(Request.SET_OWNER)

    def get_features(self) -> Outgoing:
        """Ask for the features offered."""
        return self._ask(Request.GET_FEATURES)

    def set_features(self, features: int) -> Outgoing:
        """Choose features. With F_PROTOCOL_FEATURES among them, rings start disabled."""
        return self._ask(Request.SET_FEATURES, wire.U64.pack(features))

    def get_protocol_features(self) -> Outgoing:
        """Ask for the protocol features offered (only with F_PROTOCOL_FEATURES)."""
        return self._ask(Request.GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, features: int) -> Outgoing:
        """Choose protocol features, which can be used from the next message on."""
        message = self._ask(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(features))
        self.protocol_features = features
        return message

    def get_queue_num(self) -> Outgoing:
        """Ask for the largest number of queues (MQ)."""
        return self._ask(Request.GET_QUEUE_NUM)

    def set_mem_table(self, regions: Sequence[Region], fds: Sequence[int]) -> Outgoing:
        """Share these regions of memory, each in its file, and no others."""
        count = len(regions)
        if count != len(fds) or not 0 < count <= wire.TABLE_REGIONS_MAX:
            raise LocalProtocolError(f"{count} regions and {len(fds)} descriptors")
        table = wire.MEM_TABLE.pack(count, 0) + b"".join(region.pack() for region in regions)
        return self._ask(Request.SET_MEM_TABLE, table, tuple(fds))

    def get_max_mem_slots(self) -> Outgoing:
        """Ask for the largest number of regions (CONFIGURE_MEM_SLOTS)."""
        return self._ask(Request.GET_MAX_MEM_SLOTS)

    def add_mem_reg(self, region: Region, fd: int) -> Outgoing:
        """Share one more region (CONFIGURE_MEM_SLOTS)."""
        return self._ask(Request.ADD_MEM_REG, wire.MEM_REG.pack(0, region.pack()), (fd,))

    def set_vring_num(self, index: int, num: int) -> Outgoing:
        """Set a ring's number of descriptors."""
        return self._ask_state(Request.SET_VRING_NUM, index, num)

    def set_vring_base(self, index: int, base: int) -> Outgoing:
        """Set the entry of the available ring with which the back-end begins."""
        return self._ask_state(Request.SET_VRING_BASE, index, base)

    def set_vring_addr(self, index: int, layout: Layout) -> Outgoing:
        """Set the user addresses of a ring's parts."""
        self._check(index)
        addresses = (layout.desc, layout.used, layout.avail)
        payload = wire.VRING_ADDR.pack(index, 0, *addresses, 0)
        return self._ask(Request.SET_VRING_ADDR, payload)

    def get_vring_base(self, index: int) -> Outgoing:
        """Stop a ring, and ask for the entry that the back-end would have taken next."""
        return self._ask_state(Request.GET_VRING_BASE, index, 0)

    def set_vring_kick(self, index: int, fd: int | None) -> Outgoing:
        """Set the descriptor by which we notify of buffers, or None. This starts the ring."""
        return self._ask_notifier(Request.SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> Outgoing:
        """Set the descriptor by which the back-end notifies us of used buffers, or None."""
        return self._ask_notifier(Request.SET_VRING_CALL, index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> Outgoing:
        """Set the descriptor by which the back-end notifies us of a broken ring, or None."""
        return self._ask_notifier(Request.SET_VRING_ERR, index, fd)

    def set_vring_enable(self, index: int, on: bool) -> Outgoing:
        """Enable or disable a ring (with F_PROTOCOL_FEATURES negotiated)."""
        return self._ask_state(Request.SET_VRING_ENABLE, index, int(on))

    def set_backend_req_fd(self, fd: int) -> Outgoing:
        """Set the socket for the back-end's own requests (BACKEND_REQ)."""
        return self._ask(Request.SET_BACKEND_REQ_FD, fds=(fd,))

    def get_config(self, offset: int, size: int) -> Outgoing:
        """Ask for bytes of the config space (CONFIG)."""
        if not 0 <= offset <= offset + size <= wire.CONFIG_MAX:
            raise LocalProtocolError(f"config bytes {offset} to {offset + size}")
        return self._ask(Request.GET_CONFIG, wire.CONFIG.pack(offset, size, 0) + bytes(size))

    def _ask(self, request: Request, payload: bytes = b"", fds: tuple[int, ...] = ()) -> Outgoing:
        flags = 0
        answered = request in _REPLIES
        if not answered and self.protocol_features & wire.PF_REPLY_ACK:
            flags, answered = wire.NEED_REPLY, True
        if answered:
            self._asked.append((request, payload))
        return Outgoing(pack(request, payload, flags), fds, answered)

    def _ask_state(self, request: Request, index: int, num: int) -> Outgoing:
        self._check(index)
        return self._ask(request, wire.VRING_STATE.pack(index, num))

    def _ask_notifier(self, request: Request, index: int, fd: int | None) -> Outgoing:
        self._check(index)
        if fd is None:
            return self._ask(request, wire.U64.pack(index | wire.VRING_NO_FD))
        return self._ask(request, wire.U64.pack(index), (fd,))

    def _check(self, index: int) -> None:
        if not 0 <= index < self._queues:
            raise LocalProtocolError(f"ring {index} of {self._queues}")

    # Received messages

    def receive(self, message: Message) -> Reply:
        """Return the back-end's reply to the oldest request that waits.

        Raise RemoteProtocolError if the message is not a reply to it; the connection cannot go on.
        The caller always closes the message's descriptors.
        """
        name = name_of(message.request)
        if not message.flags & wire.REPLY or not self._asked:
            raise RemoteProtocolError(f"{name} is not a reply to any request")
        request, payload = self._asked.popleft()
        if message.request != request:
            raise RemoteProtocolError(f"{name} answers {request.name}")
        if message.fds:
            raise RemoteProtocolError(f"the reply to {name} has {len(message.fds)} descriptors")
        if request is Request.GET_CONFIG:
            return _config_reply(message, payload)
        if request is Request.GET_VRING_BASE:
            return _base_reply(message, payload)
        (value,) = unpack(message, wire.U64)
        if request in _REPLIES:
            return Reply(request, value)
        return Reply(request, refused=value != 0)

    def receive_request(self, message: Message) -> Asked:
        """Handle a request of the back-end on the channel. Return its event and the reply.

        Raise RemoteProtocolError if the channel cannot go on. The caller always closes the
        message's descriptors.
        """
        name = name_of(message.request, BackendRequest)
        if message.flags & wire.REPLY:
            raise RemoteProtocolError(f"{name} on the channel has the flag of a reply")
        if message.fds:
            raise RemoteProtocolError(f"{name} on the channel has {len(message.fds)} descriptors")
        event = self._event(message, name)
        if not (message.needs_reply and self.protocol_features & wire.PF_REPLY_ACK):
            return Asked(event)
        result = wire.U64.pack(isinstance(event, Refused))
        return Asked(event, pack(message.request, result, wire.REPLY))

    def _event(self, message: Message, name: str) -> FrontendEvent:
        if message.request == BackendRequest.CONFIG_CHANGE_MSG:
            unpack(message, wire.NOTHING, BackendRequest)
            return ConfigStale()
        if message.request not in (BackendRequest.VRING_CALL, BackendRequest.VRING_ERR):
            return Refused(message.request, f"unknown {name} on the channel")
        index, _ = unpack(message, wire.VRING_STATE, BackendRequest)
        if index >= self._queues:
            return Refused(message.request, f"{name} for ring {index} of {self._queues}")
        if message.request == BackendRequest.VRING_CALL:
            return VringCalled(index)
        return VringBroken(index)


def _config_reply(message: Message, asked: bytes) -> Reply:
    if not message.payload:  # an empty reply is a refusal
        return Reply(Request.GET_CONFIG, refused=True)
    offset, size, _ = wire.CONFIG.unpack_from(asked)
    if len(message.payload) != len(asked):
        raise RemoteProtocolError(
            f"the reply to GET_CONFIG has {len(message.payload)} bytes, not {len(asked)}"
        )
    got_offset, got_size, _ = wire.CONFIG.unpack_from(message.payload)
    if (got_offset, got_size) != (offset, size):
        raise RemoteProtocolError(
            f"the reply to GET_CONFIG has {got_size} bytes from {got_offset}, "
            f"not {size} from {offset}"
        )
    return Reply(Request.GET_CONFIG, data=message.payload[wire.CONFIG.size :])


def _base_reply(message: Message, asked: bytes) -> Reply:
    index, base = unpack(message, wire.VRING_STATE)
    expected, _ = wire.VRING_STATE.unpack(asked)
    if index != expected:
        raise RemoteProtocolError(f"GET_VRING_BASE of ring {expected} is answered for {index}")
    if base >= 1 << 16:
        raise RemoteProtocolError(f"ring {index} stopped at {base}")
    return Reply(Request.GET_VRING_BASE, base)

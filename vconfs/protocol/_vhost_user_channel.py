"""The back-end's requests to the front-end, on a socket of their own."""

from __future__ import annotations

from collections import deque

from vconfs.protocol import _vhost_user_messages as wire
from vconfs.protocol._vhost_user_messages import (
    BackendRequest,
    Message,
    Outgoing,
    name_of,
    pack,
    unpack,
)
from vconfs.protocol.errors import RemoteProtocolError


class Channel:
    """The requests of a back-end to its front-end. Each method returns the message to send.

    The methods return None if the front-end has not negotiated such requests.
    `protocol_features` are the negotiated protocol features.
    """

    def __init__(self) -> None:
        self.protocol_features = 0
        self._asked: deque[int] = deque()  # requests that wait for their reply

    def config_change(self, *, need_reply: bool = False) -> Outgoing | None:
        """Report that the config space has changed."""
        return self._ask(BackendRequest.CONFIG_CHANGE_MSG, wire.PF_CONFIG, b"", need_reply)

    def vring_call(self, index: int, *, need_reply: bool = False) -> Outgoing | None:
        """Report in-band that buffers of a ring were used."""
        state = wire.VRING_STATE.pack(index, 0)
        inband = wire.PF_INBAND_NOTIFICATIONS
        return self._ask(BackendRequest.VRING_CALL, inband, state, need_reply)

    def vring_err(self, index: int, *, need_reply: bool = False) -> Outgoing | None:
        """Report in-band that a ring is broken."""
        state = wire.VRING_STATE.pack(index, 0)
        inband = wire.PF_INBAND_NOTIFICATIONS
        return self._ask(BackendRequest.VRING_ERR, inband, state, need_reply)

    def receive(self, message: Message) -> bool:
        """Handle the reply to the oldest request with `need_reply`. Return True if it succeeded.

        Raise RemoteProtocolError if the message is not a reply to that. The caller closes the
        message's descriptors.
        """
        name = name_of(message.request, BackendRequest)
        if not message.flags & wire.REPLY or not self._asked:
            raise RemoteProtocolError(f"{name} on the channel is not a reply to any request")
        asked = self._asked.popleft()
        if message.request != asked:
            raise RemoteProtocolError(f"{name} on the channel answers {BackendRequest(asked).name}")
        if message.fds:
            raise RemoteProtocolError(f"{name} on the channel with {len(message.fds)} descriptors")
        return unpack(message, wire.U64, BackendRequest) == (0,)

    def _ask(self, request: int, feature: int, payload: bytes, need: bool) -> Outgoing | None:
        needed = wire.PF_BACKEND_REQ | feature
        if self.protocol_features & needed != needed:
            return None
        need = need and bool(self.protocol_features & wire.PF_REPLY_ACK)
        if need:
            self._asked.append(request)
        return Outgoing(pack(request, payload, wire.NEED_REPLY if need else 0), answered=need)

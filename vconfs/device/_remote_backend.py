"""A vhost-user back-end as its front-end sees it: it gets one request at a time."""

from __future__ import annotations

from typing import Final

import trio

from vconfs.errors import VconfsError
from vconfs.link.vhost_user_messages import MessageSocket
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.dialect import DIALECTS, Guest
from vconfs.protocol.v8 import CONFIG, F_MULTIPORT, F_SIZE, QUEUES
from vconfs.protocol.vhost_user import Frontend, Message, Outgoing, Region, Reply
from vconfs.protocol.virtio_pci import F_VERSION_1
from vconfs.protocol.virtqueue import F_EVENT_IDX, Layout
from vconfs.system.aside import close_descriptors

#: Seconds that a back-end has to answer, and to read our first request. One that serves another
#: front-end does not read it.
_PATIENCE: Final = 10.0
_FIRST_PATIENCE: Final = 2.0
_PROTOCOL_FEATURES: Final = (
    vu.PF_MQ | vu.PF_REPLY_ACK | vu.PF_BACKEND_REQ | vu.PF_CONFIG | vu.PF_CONFIGURE_MEM_SLOTS
)


class RemoteBackend:
    """The back-end at the other end of `sock`.

    Only one task may use it at a time. After VconfsError or RemoteProtocolError, it cannot be used
    any more.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        #: The negotiated features, without VHOST_USER_F_PROTOCOL_FEATURES.
        self.features = 0
        #: The number of queues that the console uses, and its config space when it was last read.
        self.queues = 0
        self.config = b""
        self._requests = Frontend(vu.QUEUES_MAX)
        self._socket = MessageSocket(sock)
        self._enables_rings = False

    # --- the negotiation ------------------------------------------------------------------

    async def negotiate(self, dialect: str | None) -> Guest:
        """Negotiate features, and return the guest's end of the dialect.

        If no dialect is given, it is v8 for a back-end with two queues, or one that does not say
        how many it has, and virtio1 for the others.
        """
        await self._tell(self._requests.set_owner())
        offered = await self._offered_features()
        self._enables_rings = bool(offered & vu.F_PROTOCOL_FEATURES)
        if self._enables_rings:
            offered_too = (await self._ask(self._requests.get_protocol_features())).value
            chosen = offered_too & _PROTOCOL_FEATURES
            await self._tell(self._requests.set_protocol_features(chosen))
        queues = await self._queue_count()
        spoken = DIALECTS[dialect or ("v8" if queues in (None, QUEUES) else "virtio1")]
        wanted = spoken.features | F_VERSION_1 | F_EVENT_IDX
        if not self._has(vu.PF_CONFIG):
            wanted &= ~(F_MULTIPORT | F_SIZE)  # they have a meaning only with the config space
        self.features = offered & wanted
        await self._tell(
            self._requests.set_features(self.features | offered & vu.F_PROTOCOL_FEATURES)
        )
        await self.read_config()
        self.queues = _queues_needed(spoken.guest(self.features), self.config)
        if self.queues > (queues or vu.QUEUES_MAX):
            raise VconfsError(f"the back-end has {queues} queues of the {self.queues} needed")
        return spoken.guest(self.features)

    async def _queue_count(self) -> int | None:
        if not self._has(vu.PF_MQ):
            return None
        return (await self._ask(self._requests.get_queue_num())).value

    def _has(self, protocol_feature: int) -> bool:
        return bool(self._requests.protocol_features & protocol_feature)

    # --- further requests ------------------------------------------------------------------

    async def read_config(self) -> None:
        """Read the console's config space, if the back-end has it."""
        if self._has(vu.PF_CONFIG):
            self.config = (await self._ask(self._requests.get_config(0, CONFIG.size))).data

    async def give_channel(self, fd: int) -> None:
        """Send the back-end a socket for its requests, if it makes any."""
        if self._has(vu.PF_BACKEND_REQ):
            await self._tell(self._requests.set_backend_req_fd(fd))

    def receive_request(self, message: Message) -> vu.Asked:
        """Return what the back-end requests on that socket."""
        return self._requests.receive_request(message)

    async def share(self, region: Region, fd: int) -> None:
        """Share our memory."""
        if not self._has(vu.PF_CONFIGURE_MEM_SLOTS):
            await self._tell(self._requests.set_mem_table([region], [fd]))
            return
        if not (await self._ask(self._requests.get_max_mem_slots())).value:
            raise VconfsError("the back-end has no room for a memory region")
        await self._tell(self._requests.add_mem_reg(region, fd))

    async def start_ring(self, index: int, layout: Layout, kick: int, call: int, err: int) -> None:
        """Set up a ring and start it; `layout` has addresses in the shared memory."""
        requests = self._requests
        await self._tell(requests.set_vring_num(index, layout.size))
        await self._tell(requests.set_vring_base(index, 0))
        await self._tell(requests.set_vring_addr(index, layout))
        await self._tell(requests.set_vring_call(index, call))
        await self._tell(requests.set_vring_err(index, err))
        await self._tell(requests.set_vring_kick(index, kick))
        if self._enables_rings:
            await self._tell(requests.set_vring_enable(index, True))

    async def stop_ring(self, index: int) -> None:
        """Stop a ring: the back-end does not use it any more."""
        await self._ask(self._requests.get_vring_base(index))

    async def _offered_features(self) -> int:
        """Return the answer to our first request. Raise VconfsError soon if it is not read."""
        with trio.move_on_after(_FIRST_PATIENCE):
            return (await self._ask(self._requests.get_features())).value
        if self._socket.unread():
            raise VconfsError("the back-end does not read our request: it serves another front-end")
        return (await self._ask(self._requests.get_features())).value

    # --- one request, one reply -----------------------------------------------------------

    async def _ask(self, request: Outgoing) -> Reply:
        reply = await self._exchange(request)
        assert reply is not None
        return reply

    async def _tell(self, request: Outgoing) -> None:
        await self._exchange(request)

    async def _exchange(self, request: Outgoing) -> Reply | None:
        """Send a request. Return its reply, or None if there is none."""
        reply = None
        try:
            with trio.fail_after(_PATIENCE):
                await self._socket.send(request.data, request.fds)
                while self._requests.waiting:  # replies to cancelled requests as well
                    reply = self._requests.receive(await self._next_message())
        except trio.TooSlowError:
            raise VconfsError(f"the back-end gave no answer in {_PATIENCE:.0f} seconds") from None
        except OSError as error:
            raise VconfsError(f"the connection broke: {error.strerror}") from None
        if reply is not None and reply.refused:
            raise VconfsError(f"the back-end refused {reply.request.name}")
        return reply

    async def _next_message(self) -> Message:
        message = await self._socket.receive()
        if message is None:
            raise VconfsError("the back-end has left")
        close_descriptors(message.fds)
        return message

    def release(self) -> None:
        """Close the descriptors of messages that were not returned."""
        self._socket.release()


def _queues_needed(end: Guest, config: bytes) -> int:
    """Return the number of queues of a console with this config space; `end` is used up by that."""
    end.receive_config(config)
    return end.queues

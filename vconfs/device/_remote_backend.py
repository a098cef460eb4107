"""A vhost-user back-end, seen by its front-end: asked one thing after the other."""

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

#: Seconds that a back-end has for an answer; it may be serving another front-end meanwhile.
_PATIENCE: Final = 10.0
_PROTOCOL_FEATURES: Final = (
    vu.PF_MQ | vu.PF_REPLY_ACK | vu.PF_BACKEND_REQ | vu.PF_CONFIG | vu.PF_CONFIGURE_MEM_SLOTS
)


class RemoteBackend:
    """The back-end at the other end of `sock`.

    Only one task may ask at a time. VconfsError and RemoteProtocolError: it is of no more use.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        #: The negotiated features, without VHOST_USER_F_PROTOCOL_FEATURES.
        self.features = 0
        #: How many queues the console uses, and its config space as it was last read.
        self.queues = 0
        self.config = b""
        self._requests = Frontend(vu.QUEUES_MAX)
        self._socket = MessageSocket(sock)
        self._enables_rings = False

    # --- the negotiation ------------------------------------------------------------------

    async def negotiate(self, dialect: str | None) -> Guest:
        """Agree on features, and give the guest's end of the dialect.

        Where nobody has chosen one, a back-end with two queues speaks v8, as one does that does
        not tell how many it has.
        """
        await self._tell(self._requests.set_owner())
        offered = (await self._ask(self._requests.get_features())).value
        self._enables_rings = bool(offered & vu.F_PROTOCOL_FEATURES)
        if self._enables_rings:
            offered_too = (await self._ask(self._requests.get_protocol_features())).value
            chosen = offered_too & _PROTOCOL_FEATURES
            await self._tell(self._requests.set_protocol_features(chosen))
        queues = await self._queue_count()
        spoken = DIALECTS[dialect or ("v8" if queues in (None, QUEUES) else "virtio1")]
        wanted = spoken.features | F_VERSION_1 | F_EVENT_IDX
        if not self._has(vu.PF_CONFIG):
            wanted &= ~(F_MULTIPORT | F_SIZE)  # the config space would tell what they mean
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

    # --- what else is asked ---------------------------------------------------------------

    async def read_config(self) -> None:
        """Read the console's config space, if that is possible."""
        if self._has(vu.PF_CONFIG):
            self.config = (await self._ask(self._requests.get_config(0, CONFIG.size))).data

    async def give_channel(self, fd: int) -> None:
        """Give the back-end a socket for its requests, if it makes any."""
        if self._has(vu.PF_BACKEND_REQ):
            await self._tell(self._requests.set_backend_req_fd(fd))

    def receive_request(self, message: Message) -> vu.Asked:
        """Say what the back-end asks on that socket."""
        return self._requests.receive_request(message)

    async def share(self, region: Region, fd: int) -> None:
        """Share our memory."""
        if not self._has(vu.PF_CONFIGURE_MEM_SLOTS):
            await self._tell(self._requests.set_mem_table([region], [fd]))
            return
        if not (await self._ask(self._requests.get_max_mem_slots())).value:
            raise VconfsError("the back-end has no place for a memory region")
        await self._tell(self._requests.add_mem_reg(region, fd))

    async def start_ring(self, index: int, layout: Layout, kick: int, call: int, err: int) -> None:
        """Set a ring up and have it served; `layout` has addresses in the memory shared."""
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
        """Have a ring left alone."""
        await self._ask(self._requests.get_vring_base(index))

    # --- one question, one answer ---------------------------------------------------------

    async def _ask(self, request: Outgoing) -> Reply:
        reply = await self._exchange(request)
        assert reply is not None
        return reply

    async def _tell(self, request: Outgoing) -> None:
        await self._exchange(request)

    async def _exchange(self, request: Outgoing) -> Reply | None:
        """Send a request, and give the reply to it if there is one."""
        reply = None
        try:
            with trio.fail_after(_PATIENCE):
                await self._socket.send(request.data, request.fds)
                while self._requests.waiting:  # also for answers that nobody waited for
                    reply = self._requests.receive(await self._next_message())
        except trio.TooSlowError:
            raise VconfsError(
                f"the back-end gave no answer in {_PATIENCE:.0f} seconds: "
                "it may be serving somebody else"
            ) from None
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
    """Say how many queues a console with such a config space uses; `end` is of no use then."""
    end.receive_config(config)
    return end.queues

"""One vhost-user front-end, from its first message to its last.

The guest behind it is attached to the host as soon as a ring is enabled, and each queue joins the
link when its ring is enabled. A front-end stops the rings whenever its guest pauses, so that alone
does not detach the guest: it stays attached, and nothing is sent to it or received from it. A ring
that starts at another place than where it stopped has a new driver, which knows nothing of what
the driver before it was told; then the guest is attached again. A driver that broke the rules of a
ring is detached, and the rings are left alone until the next driver sets them up: Linux takes its
buffers back before user-mode Linux has stopped the rings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, Self, TypeAlias, assert_never

import trio

from vconfs.host._attached_guest import AttachedGuest
from vconfs.host.rings import DeviceLink
from vconfs.host.vhost_user._channel import FrontendChannel
from vconfs.host.vhost_user._device import VhostUserDevice
from vconfs.host.vhost_user._memory import SharedMemory
from vconfs.host.vhost_user._missing_queues import MissingQueues
from vconfs.host.vhost_user._rings import FrontendRings
from vconfs.link.vhost_user_messages import MessageSocket
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import Message, Request
from vconfs.protocol.virtqueue import F_EVENT_IDX, DeviceQueue
from vconfs.system.aside import close_descriptors
from vconfs.system.log_once import LogOnce
from vconfs.system.tasks import open_background

log: Final = logging.getLogger(__name__)

#: Seconds that a front-end has for its hello, because others may be waiting.
_HELLO: Final = 10.0
#: A front-end has said hello when it has sent these requests, or one that is not in the next set.
_HELLO_NEEDS: Final = frozenset((Request.SET_OWNER, Request.GET_FEATURES))
_HELLO_MESSAGES: Final = _HELLO_NEEDS | {
    Request.SET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.SET_PROTOCOL_FEATURES,
}


#: What changes one ring, and needs no answer.
_RingChange: TypeAlias = (
    vu.RingStarted | vu.RingMoved | vu.RingEnabled | vu.NotifierChanged | vu.Kicked
)


class FrontendSession:
    """Serves one front-end, the peer of `sock`."""

    _nursery: trio.Nursery

    def __init__(self, device: VhostUserDevice, sock: trio.socket.SocketType) -> None:
        #: How many requests were refused without ending the connection.
        self.refused = 0
        self._device = device
        self._socket = MessageSocket(sock)
        self._protocol = device.protocol(self._read_config)
        self._config: bytes | None = None  # as the front-end last read it
        self._missing = MissingQueues(device, self._protocol, lambda: self._guest is not None)
        self._channel = FrontendChannel()
        self._memory = SharedMemory(require_seals=device.offer.require_seals)
        self._rings = FrontendRings(self._protocol, self._channel, self._kicked_all)
        #: Where rings stopped that have not started again.
        self._stopped: dict[int, int] = {}
        self._features = 0
        self._link: DeviceLink | None = None
        self._guest: AttachedGuest | None = None
        self._trouble = LogOnce(log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._guest is not None:
            self._guest.stop()  # while the rings are live, so that all that was sent is received
        self._pause_all()
        self._detach()
        self._memory.clear()
        self._channel.close()
        self._socket.release()
        close_descriptors(self._protocol.release())

    async def run(self, turn: AbstractAsyncContextManager[object] | None = None) -> None:
        """Serve the front-end until it leaves; raise RemoteProtocolError if it breaks a rule.

        What comes after its hello is handled inside of `turn`.
        """
        async with open_background() as self._nursery:
            rings = self._rings
            for task in (rings.kicks.run, rings.poll, self._channel.run, self._missing.run):
                self._nursery.start_soon(task)
            try:
                message = await self._hear_hello()
                async with turn or nullcontext():
                    await self._serve(message)
            except OSError as error:
                raise RemoteProtocolError(f"the connection broke: {error.strerror}") from None

    async def _serve(self, first: Message | None) -> None:
        """Handle `first`, if any, and the messages after it; then take what the guest has sent."""
        try:
            if first is not None:
                await self._handle(first)
            while (message := await self._socket.receive()) is not None:
                await self._handle(message)
        finally:
            if self._guest is not None:
                with trio.CancelScope(shield=True):  # it does not wait for others
                    await self._guest.take_rest()

    async def _hear_hello(self) -> Message | None:
        """Answer the front-end's hello; return the first message after it if it came early."""
        missing = set(_HELLO_NEEDS)
        with trio.move_on_after(_HELLO):
            while missing:
                message = await self._socket.receive()
                if message is None or message.request not in _HELLO_MESSAGES:
                    return message
                await self._handle(message)
                missing.discard(Request(message.request))
            return None
        raise RemoteProtocolError(f"no whole hello in {_HELLO:.0f} seconds")

    async def _handle(self, message: Message) -> None:
        handled = self._protocol.receive(message)
        reply = handled.reply
        try:
            for event in handled.events:
                reply += await self._act_on(event)
        finally:
            close_descriptors(handled.close)
        if reply:
            await self._socket.send(reply)

    # --- the guest ------------------------------------------------------------------------

    def _attach(self) -> DeviceLink:
        device, features = self._device, self._features
        header_size = device.end(features).header_size
        link = DeviceLink({}, features=features, call=self._rings.call, header_size=header_size)
        guest = device.attach(link, features, self._announce_config)
        self._link, self._guest = link, guest
        self._nursery.start_soon(self._watch, guest)
        guest.start()
        if self._config is not None and self._config != device.config:
            self._announce_config()
        return link

    def _detach(self) -> None:
        self._stopped.clear()
        if self._guest is not None:
            self._link = self._guest = None
            self._device.host.detach()

    async def _watch(self, guest: AttachedGuest) -> None:
        """Leave a lost guest's rings alone, until its next driver sets them up."""
        await guest.stopped.wait()
        if guest is self._guest:
            for index in self._pause_all():
                self._rings.tell_broken(index)
            self._detach()

    # --- rings that are live --------------------------------------------------------------

    def _go(self, index: int) -> None:
        """Start a ring's queue on the link."""
        ring = self._rings.by_index[index]
        if self._stopped.pop(index, ring.base) != ring.base:
            self._attach_anew()
        link = self._link or self._attach()
        queue = DeviceQueue(
            self._memory.guest,
            ring.layout,
            event_idx=bool(self._features & F_EVENT_IDX),
            next_avail=ring.base,
        )
        self._rings.listen(index)
        link.start_queue(index, queue)
        ring.live = True
        link.kicked(index)

    def _pause(self, index: int) -> None:
        """Stop a ring's queue on the link, after taking what was sent on it before."""
        ring = self._rings.by_index[index]
        if ring.live and self._link is not None:
            self._kicked(index)
            ring.live = False
            self._rings.listen_no_more(index)
            ring.base = self._link.stop_queue(index)

    def _pause_all(self) -> list[int]:
        live = self._rings.live()
        for index in live:
            self._pause(index)
        return live

    def _attach_anew(self) -> None:
        live = self._pause_all()
        self._detach()
        for index in live:
            self._go(index)

    def _kicked(self, index: int) -> None:
        if self._link is not None and self._rings.by_index[index].live:
            self._link.kicked(index)

    def _kicked_all(self, indexes: Sequence[int]) -> None:
        if self._link is not None:
            self._link.kicked_all([n for n in indexes if self._rings.by_index[n].live])

    # --- the config space -----------------------------------------------------------------

    def _read_config(self) -> bytes:
        self._config = config = self._device.config
        self._missing.config_read()
        return config

    def _announce_config(self) -> None:
        self._channel.post(self._protocol.channel.config_change())

    # --- what messages change -------------------------------------------------------------

    async def _act_on(self, event: vu.BackendEvent) -> bytes:
        """Act on one event of a message; return what is to be sent back, if anything."""
        match event:
            case vu.FeaturesSet():
                if event.features != self._features:
                    self._features = event.features
                    self._attach_anew()
            case vu.MemoryTableSet() | vu.MemoryRegionAdded() | vu.MemoryRegionRemoved():
                self._pause_all()
                await self._change_memory(event)
            case vu.RingStopped():
                return self._ring_stopped(event.index, answer=event.answer)
            case (
                vu.RingStarted()
                | vu.RingMoved()
                | vu.RingEnabled()
                | vu.NotifierChanged()
                | vu.Kicked()
            ):
                self._change_ring(event)
            case vu.ConfigWritten():
                if not event.migration:  # else it is what was read from us before a migration
                    self._device.write_config(event.offset, event.data)
            case vu.ChannelSet():
                self._channel.open(event.fd)
            case vu.DeviceReset():
                self._detach()
            case vu.Refused():
                self.refused += 1
                self._trouble.warning(event.reason, "front-end: refused: %s", event.reason)
            case _:
                assert_never(event)
        return b""

    async def _change_memory(
        self, event: vu.MemoryTableSet | vu.MemoryRegionAdded | vu.MemoryRegionRemoved
    ) -> None:
        match event:
            case vu.MemoryTableSet():
                await self._memory.replace(event.regions, event.fds)
            case vu.MemoryRegionAdded():
                await self._memory.add(event.region, event.fd)
            case vu.MemoryRegionRemoved():
                self._memory.remove(event.region)
            case _:
                assert_never(event)

    def _change_ring(self, event: _RingChange) -> None:
        rings, index = self._rings, event.index
        match event:
            case vu.RingStarted():
                rings.add(index, event.setup)
                if event.setup.enabled:
                    self._go(index)
            case vu.RingMoved():
                rings.by_index[index].layout = event.layout
                if self._protocol.is_enabled(index):
                    self._go(index)
            case vu.RingEnabled():
                if event.enabled:
                    self._go(index)
                else:
                    self._pause(index)
            case vu.NotifierChanged():
                rings.set_notifier(index, event.notifier, event.fd)
            case vu.Kicked():
                self._kicked(index)
            case _:
                assert_never(event)

    def _ring_stopped(self, index: int, *, answer: bool) -> bytes:
        self._pause(index)
        base = self._rings.by_index.pop(index).base
        if self._link is not None:
            self._stopped[index] = base
        return self._protocol.ring_stopped(index, base) if answer else b""

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
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, ClassVar, Final, Self

import trio
from attrs import define

from vconfs.host._attached_guest import AttachedGuest
from vconfs.host.rings import DeviceLink
from vconfs.host.vhost_user._channel import FrontendChannel
from vconfs.host.vhost_user._device import VhostUserDevice
from vconfs.host.vhost_user._memory import SharedMemory
from vconfs.link.notifications import Bell, Notices, check_notifier
from vconfs.link.vhost_user_messages import MessageSocket
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import Message, Notifier, Request
from vconfs.protocol.virtqueue import F_EVENT_IDX, DeviceQueue, Layout
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
#: Seconds between two checks of rings that have no notifications.
_POLLING: Final = 0.001


@define
class _Ring:
    """A ring that was started; it is live while its queue is on the link."""

    layout: Layout
    base: int
    enabled: bool
    #: The descriptors to wait on, and to notify by; None if none was sent.
    kick: int | None
    bells: dict[Notifier, Bell | None]
    live: bool = False


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
        self._channel = FrontendChannel()
        self._memory = SharedMemory(require_seals=device.offer.require_seals)
        self._kicks: Notices[int] = Notices()
        self._polled: set[int] = set()
        self._polling = trio.Event()
        self._rings: dict[int, _Ring] = {}
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
        self._kicks.close()
        self._channel.close()
        self._socket.release()
        close_descriptors(self._protocol.release())

    async def run(self, turn: AbstractAsyncContextManager[object] | None = None) -> None:
        """Serve the front-end until it leaves; raise RemoteProtocolError if it breaks a rule.

        What comes after its hello is handled inside of `turn`.
        """
        async with open_background() as self._nursery:
            for task in (self._serve_kicks, self._poll, self._channel.run):
                self._nursery.start_soon(task)
            try:
                message = await self._hear_hello()
                async with turn or nullcontext():
                    if message is not None:
                        await self._handle(message)
                    while (message := await self._socket.receive()) is not None:
                        await self._handle(message)
            except OSError as error:
                raise RemoteProtocolError(f"the connection broke: {error.strerror}") from None

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
                done = self._HANDLERS[type(event)](self, event)
                if isinstance(done, Awaitable):
                    await done
                elif done:
                    reply += done
        finally:
            close_descriptors(handled.close)
        if reply:
            await self._socket.send(reply)

    # --- the guest ------------------------------------------------------------------------

    def _attach(self) -> DeviceLink:
        device, features = self._device, self._features
        header_size = device.end(features).header_size
        link = DeviceLink({}, features=features, call=self._call, header_size=header_size)
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
                self._tell_broken(index)
            self._detach()

    # --- rings that are live --------------------------------------------------------------

    def _go(self, index: int) -> None:
        """Start a ring's queue on the link."""
        ring = self._rings[index]
        if self._stopped.pop(index, ring.base) != ring.base:
            self._attach_anew()
        link = self._link or self._attach()
        queue = DeviceQueue(
            self._memory.guest,
            ring.layout,
            event_idx=bool(self._features & F_EVENT_IDX),
            next_avail=ring.base,
        )
        self._listen(index)
        link.start_queue(index, queue)
        ring.live = True
        link.kicked(index)

    def _pause(self, index: int) -> None:
        """Stop a ring's queue on the link, after taking what was sent on it before."""
        ring = self._rings[index]
        if ring.live and self._link is not None:
            self._kicked(index)
            ring.live = False
            self._listen_no_more(index)
            ring.base = self._link.stop_queue(index)

    def _pause_all(self) -> list[int]:
        live = [index for index, ring in self._rings.items() if ring.live]
        for index in live:
            self._pause(index)
        return live

    def _attach_anew(self) -> None:
        live = self._pause_all()
        self._detach()
        for index in live:
            self._go(index)

    # --- notifications --------------------------------------------------------------------

    def _listen(self, index: int) -> None:
        kick = self._rings[index].kick
        if kick is not None:
            self._kicks.add(kick, index)
        elif not self._protocol.protocol_features & vu.PF_INBAND_NOTIFICATIONS:
            self._polled.add(index)
            self._polling.set()

    def _listen_no_more(self, index: int) -> None:
        kick = self._rings[index].kick
        if kick is not None:
            self._kicks.remove(kick)
        self._polled.discard(index)

    async def _serve_kicks(self) -> None:
        while True:
            for index in await self._kicks.wait():
                self._kicked(index)

    async def _poll(self) -> None:
        """Check the rings for which neither descriptors nor messages notify us."""
        while True:
            if not self._polled:
                self._polling = trio.Event()
                await self._polling.wait()
            for index in tuple(self._polled):
                self._kicked(index)
            await trio.sleep(_POLLING)

    def _kicked(self, index: int) -> None:
        if self._link is not None and self._rings[index].live:
            self._link.kicked(index)

    def _call(self, index: int) -> None:
        if call := self._rings[index].bells[Notifier.CALL]:
            call.ring()
        else:
            self._channel.post(self._protocol.channel.vring_call(index))

    def _tell_broken(self, index: int) -> None:
        if err := self._rings[index].bells[Notifier.ERR]:
            err.ring()
        else:
            self._channel.post(self._protocol.channel.vring_err(index))

    # --- the config space -----------------------------------------------------------------

    def _read_config(self) -> bytes:
        self._config = config = self._device.config
        return config

    def _announce_config(self) -> None:
        self._channel.post(self._protocol.channel.config_change())

    # --- what messages change -------------------------------------------------------------

    def _features_set(self, event: vu.FeaturesSet) -> None:
        if event.features != self._features:
            self._features = event.features
            self._attach_anew()

    async def _memory_set(self, event: vu.MemoryTableSet) -> None:
        self._pause_all()
        await self._memory.replace(event.regions, event.fds)

    async def _region_added(self, event: vu.MemoryRegionAdded) -> None:
        self._pause_all()
        await self._memory.add(event.region, event.fd)

    def _region_removed(self, event: vu.MemoryRegionRemoved) -> None:
        self._pause_all()
        self._memory.remove(event.region)

    def _ring_moved(self, event: vu.RingMoved) -> None:
        ring = self._rings[event.index]
        ring.layout = event.layout
        if ring.enabled:
            self._go(event.index)

    def _ring_started(self, event: vu.RingStarted) -> None:
        setup = event.setup
        if setup.kick_fd is not None:
            check_notifier(setup.kick_fd)
        bells = {Notifier.CALL: _bell(setup.call_fd), Notifier.ERR: _bell(setup.err_fd)}
        self._rings[event.index] = _Ring(
            setup.layout, setup.base, setup.enabled, setup.kick_fd, bells
        )
        if setup.enabled:
            self._go(event.index)

    def _ring_enabled(self, event: vu.RingEnabled) -> None:
        self._rings[event.index].enabled = event.enabled
        if event.enabled:
            self._go(event.index)
        else:
            self._pause(event.index)

    def _ring_stopped(self, event: vu.RingStopped) -> bytes:
        self._pause(event.index)
        base = self._rings.pop(event.index).base
        if self._link is not None:
            self._stopped[event.index] = base
        return self._protocol.ring_stopped(event.index, base) if event.answer else b""

    def _notifier_changed(self, event: vu.NotifierChanged) -> None:
        ring = self._rings[event.index]
        if event.notifier is not Notifier.KICK:
            ring.bells[event.notifier] = None  # the old one is closed in any case
            ring.bells[event.notifier] = _bell(event.fd)
            return
        if ring.live:
            self._listen_no_more(event.index)
        ring.kick = None
        if event.fd is not None:
            check_notifier(event.fd)
            ring.kick = event.fd
        if ring.live:
            self._listen(event.index)
            self._kicked(event.index)

    def _kicked_inband(self, event: vu.Kicked) -> None:
        self._kicked(event.index)

    def _config_written(self, event: vu.ConfigWritten) -> None:
        if not event.migration:  # else it is what was read from us before a migration
            self._device.write_config(event.offset, event.data)

    def _channel_set(self, event: vu.ChannelSet) -> None:
        self._channel.open(event.fd)

    def _reset(self, event: vu.DeviceReset) -> None:
        self._detach()

    def _refused(self, event: vu.Refused) -> None:
        self.refused += 1
        self._trouble.warning(event.reason, "front-end: refused: %s", event.reason)

    _HANDLERS: ClassVar[Mapping[type, Callable[[Any, Any], Awaitable[None] | bytes | None]]] = {
        vu.FeaturesSet: _features_set,
        vu.MemoryTableSet: _memory_set,
        vu.MemoryRegionAdded: _region_added,
        vu.MemoryRegionRemoved: _region_removed,
        vu.RingStarted: _ring_started,
        vu.RingMoved: _ring_moved,
        vu.RingStopped: _ring_stopped,
        vu.RingEnabled: _ring_enabled,
        vu.NotifierChanged: _notifier_changed,
        vu.Kicked: _kicked_inband,
        vu.ConfigWritten: _config_written,
        vu.ChannelSet: _channel_set,
        vu.DeviceReset: _reset,
        vu.Refused: _refused,
    }


def _bell(fd: int | None) -> Bell | None:
    """Return a bell for a descriptor from the front-end; RemoteProtocolError if it is unusable."""
    if fd is None:
        return None
    check_notifier(fd)
    try:
        return Bell(fd)
    except OSError as error:
        raise RemoteProtocolError(f"it cannot be notified by eventfds: {error.strerror}") from None

"""The rings that a front-end has started, and how each side notifies the other.

A front-end notifies us by a descriptor, by messages in-band or, if it offers neither, not at all:
then we look at the ring again and again. We notify it by descriptors or, without one, by messages
on the channel for requests to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio
from attrs import define

from vconfs.host.vhost_user._channel import FrontendChannel
from vconfs.link.notifications import Bell, Notices, check_notifier
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import Notifier
from vconfs.protocol.virtqueue import Layout

#: Seconds between two checks of rings that have no notifications.
_POLLING: Final = 0.001


@define
class FrontendRing:
    """A ring that was started; it is live while its queue is on the link."""

    layout: Layout
    base: int
    #: The descriptors to wait on, and to notify by; None if none was sent.
    kick: int | None
    bells: dict[Notifier, Bell | None]
    live: bool = False


class FrontendRings:
    """The started rings by their index. `kicked` is called with those that may have buffers."""

    def __init__(
        self,
        protocol: vu.Backend,
        channel: FrontendChannel,
        kicked: Callable[[Sequence[int]], None],
    ) -> None:
        self.by_index: dict[int, FrontendRing] = {}
        self._protocol = protocol
        self._channel = channel
        self._kicked = kicked
        self.kicks: Notices[int] = Notices(lambda index: kicked((index,)))
        #: The live rings of which nothing notifies us.
        self._polled: set[int] = set()
        self._polling = trio.Event()

    def add(self, index: int, setup: vu.RingSetup) -> None:
        """Add a ring; RemoteProtocolError if one of its descriptors cannot be used."""
        if setup.kick_fd is not None:
            check_notifier(setup.kick_fd)
        bells = {Notifier.CALL: _bell(setup.call_fd), Notifier.ERR: _bell(setup.err_fd)}
        self.by_index[index] = FrontendRing(setup.layout, setup.base, setup.kick_fd, bells)

    def live(self) -> list[int]:
        """Return the rings whose queues are on the link."""
        return [index for index, ring in self.by_index.items() if ring.live]

    def set_notifier(self, index: int, notifier: Notifier, fd: int | None) -> None:
        """Use another descriptor of a ring, or none."""
        ring = self.by_index[index]
        if notifier is not Notifier.KICK:
            ring.bells[notifier] = None  # the old one is closed in any case
            ring.bells[notifier] = _bell(fd)
            return
        if ring.live:
            self.listen_no_more(index)
        ring.kick = None
        if fd is not None:
            check_notifier(fd)
            ring.kick = fd
        if ring.live:
            self.listen(index)
            self._kicked((index,))

    # --- from the front-end ---------------------------------------------------------------

    def listen(self, index: int) -> None:
        """Heed the notifications of a ring or, if there are none, look at it again and again."""
        kick = self.by_index[index].kick
        if kick is not None:
            self.kicks.add(kick, index)
        elif not self._protocol.protocol_features & vu.PF_INBAND_NOTIFICATIONS:
            self._polled.add(index)
            self._polling.set()

    def listen_no_more(self, index: int) -> None:
        """Undo `listen`."""
        kick = self.by_index[index].kick
        if kick is not None:
            self.kicks.remove(kick)
        self._polled.discard(index)

    async def poll(self) -> None:
        """Look at the rings for which neither descriptors nor messages notify us."""
        while True:
            if not self._polled:
                self._polling = trio.Event()
                await self._polling.wait()
            self._kicked(tuple(self._polled))
            await trio.sleep(_POLLING)

    # --- to the front-end -----------------------------------------------------------------

    def call(self, index: int) -> None:
        """Notify the front-end that we have used buffers of a ring."""
        if call := self.by_index[index].bells[Notifier.CALL]:
            call.ring()
        else:
            self._channel.post(self._protocol.channel.vring_call(index))

    def tell_broken(self, index: int) -> None:
        """Notify the front-end that its driver broke the rules of a ring."""
        if err := self.by_index[index].bells[Notifier.ERR]:
            err.ring()
        else:
            self._channel.post(self._protocol.channel.vring_err(index))


def _bell(fd: int | None) -> Bell | None:
    """Return a bell for a descriptor from the front-end; RemoteProtocolError if it is unusable."""
    if fd is None:
        return None
    check_notifier(fd)
    try:
        return Bell(fd)
    except OSError as error:
        raise RemoteProtocolError(f"it cannot be notified by eventfds: {error.strerror}") from None

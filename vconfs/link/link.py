"""The interface between an end and its transport: numbered queues of buffers in both directions.

Each queue keeps its order. A link hides from an end what carries the buffers: virtqueues in shared
memory, or a byte stream. The guest end and the host end use the same interface. No call waits: the
link tells its owner when buffers have come (`received`) or can be sent (`room`), and the owner then
takes or sends as many as it wants.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol, TypeAlias

import trio

from vconfs.link.byte_queue import Lent
from vconfs.protocol.dialect import Guest
from vconfs.protocol.events import Buffer
from vconfs.protocol.virtqueue import SIZE_MAX

#: Seconds that a peer has to take what was sent when we leave at once.
LEAVING_TIME: Final = 0.5


class LinkOwner(Protocol):
    """The end that uses a link. The link calls it, and it may call the link from these methods."""

    def received(self, queue: int) -> None:
        """Called when buffers have come on `queue`: see `Link.receive`."""

    def room(self, queue: int) -> None:
        """Called when buffers can be sent on `queue` again."""

    def config_changed(self) -> None:
        """Called when the config space may have changed (never on the host end)."""

    def lost(self, reason: str) -> None:
        """Called when the link is lost for good: the peer left, or broke a rule."""

    def left(self) -> None:
        """Called when we have left the link for good: `untaken` bytes will not arrive any more."""


class Link(ABC):
    """A transport to the other end, for the lifetime of one connection.

    `features` are the negotiated feature bits. After a call of the owner's `lost`, nothing comes
    and nothing can be sent, but every method can still be called.
    """

    features: int
    owner: LinkOwner
    #: The most bytes that can be on their way to us in buffers that the peer already has.
    in_flight: int

    def start(self) -> None:  # noqa: B027
        """Begin to carry buffers. Called once `owner` is set."""

    @property
    def is_spent(self) -> bool:
        """True if more has come than fits in one turn of the event loop.

        `receive` then returns nothing more in this turn, and the owner's `received` is called again
        in the next one.
        """
        return False

    @property
    @abstractmethod
    def config(self) -> bytes:
        """The current contents of the device's config space."""

    def write_config(self, offset: int, data: Buffer) -> None:  # noqa: B027
        """Write to the device's config space (guest end, if the device allows it)."""

    @abstractmethod
    def room_for(self, queue: int, header_size: int) -> int:
        """Return how many bytes of data, headers excluded, fit in `queue`'s free buffers.

        This counts the buffers that are known to be free: see `find_room`.
        """

    def find_room(self, queue: int, header_size: int) -> int:
        """Look for buffers that have become free, then return `room_for`.

        If there is no room, request a call of the owner's `room` when there is.
        """
        return self.room_for(queue, header_size)

    @abstractmethod
    def find_buffer(self, queue: int, wanted: int) -> int:
        """Return the size of the next free buffer of `queue`, header included, or 0.

        Look for buffers that have become free first. A link without buffers has one if `wanted`
        bytes can be sent. If there is no buffer, request a call of the owner's `room` when there
        is.
        """

    def want_room(self, queue: int) -> None:  # noqa: B027
        """Request a call of the owner's `room` when the next buffer can be sent.

        After a `find_room` or `find_buffer` that returned 0 this is not needed.
        """

    @abstractmethod
    def send(
        self,
        queue: int,
        header: bytes,
        data: Buffer,
        seen: Callable[[], None] | None = None,
        *,
        port_id: int | None = None,
    ) -> int:
        """Put a header, and as much of `data` as fits, into the next buffer of `queue`.

        It is sent by the next `flush`. Return how many bytes of `data` it has. The caller has
        checked that there is a buffer, which is larger than the header. `seen` is called once the
        other end has processed this buffer, and never from within a call by the owner. `port_id` is
        the port whose data this is, or None if it is a control message.
        """

    def untaken(self) -> Mapping[int, int]:
        """Return, by port, how many of the sent bytes the peer has not taken.

        Only bytes of which this is known are counted, and only ports with such bytes are included.
        """
        return {}

    def owed(self) -> Mapping[int, int]:
        """Like `untaken`, but this becomes less whenever the peer takes some of the bytes."""
        return self.untaken()

    async def leave(self, patience: float) -> None:  # noqa: B027
        """Tell the peer that we leave, and wait until it has taken everything and sends no more.

        Give up when there was no progress for `patience` seconds. What comes meanwhile is still
        received. Only the first call does this; nothing can be sent after it.
        """

    @abstractmethod
    def receive(self, queue: int) -> memoryview | None:
        """Return the next buffer that came on `queue`, or None. The view is valid until `done`."""

    def receive_many(self, queue: int, size: int) -> Sequence[memoryview]:
        """Return the next buffers that came on `queue`, with about `size` bytes or fewer."""
        buffer = self.receive(queue)
        return () if buffer is None else (buffer,)

    def arrived(self, queue: int) -> int:
        """Return how many buffers have come on `queue` and were not received, or more than that."""
        return SIZE_MAX

    def taking_last(self) -> AbstractContextManager[None]:
        """Let `receive` return all that has come, although it may be much for one turn.

        This is for the end of a port or of the link.
        """
        return nullcontext()

    def look_again(self, queue: int) -> bool:
        """Return True if something has come on `queue` meanwhile, and was passed to the owner.

        If the other end is busy sending, this waits for a moment (see `BusyPolling`).
        """
        return False

    @abstractmethod
    def again(self, queue: int) -> None:
        """Call the owner's `received` once more, after others have had their turn."""

    def hold(self, queue: int) -> Lent | None:
        """Keep the buffer that was received last valid past its `done`, until it is given back.

        Return None if it cannot be kept. Its data must then be copied.
        """
        return None

    @abstractmethod
    def done(self, queue: int) -> None:
        """Give back the oldest buffer received on `queue`, with the next `flush`."""

    @abstractmethod
    def withhold(self, queue: int) -> None:
        """Like `done`, but the other end gets the buffer back only at `release`.

        Until then it cannot send in that buffer, so its buffers limit what it sends.
        """

    @abstractmethod
    def release(self, queue: int) -> None:
        """Give back all withheld buffers of `queue` at once."""

    def done_many(self, queue: int, count: int) -> None:
        """Give back the `count` oldest buffers."""
        for _ in range(count):
            self.done(queue)

    @abstractmethod
    def flush(self, queue: int) -> None:
        """Make everything sent or given back on `queue` visible to the other end, and notify it."""


async def leave_soon(link: Link) -> None:
    """Call `Link.leave`, cancelled or not, and give up after a moment."""
    with trio.move_on_after(LEAVING_TIME, shield=True):
        await link.leave(LEAVING_TIME)


#: The result of opening a device. The caller sets the link's owner before it awaits anything.
OpenDevice: TypeAlias = tuple[Link, Guest]


def call_soon(call: Callable[[int], None], queue: int) -> None:
    """Schedule a call after the turns of others; several requests make one call."""
    trio.lowlevel.current_trio_token().run_sync_soon(call, queue, idempotent=True)

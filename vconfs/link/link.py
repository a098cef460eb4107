"""What lies between the two ends: buffers of numbered queues, carried in order both ways.

A link is all that an end knows of the way to the other one, be it virtqueues in shared memory or
a byte stream. The same interface serves the guest end and the host end. Nothing here waits: the
link tells its owner when buffers have come (`received`) or can go (`room`), and the owner then
takes or sends as much as it likes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import trio

from vconfs.protocol.dialect import Guest
from vconfs.protocol.events import Buffer


class LinkOwner(Protocol):
    """The end that uses a link; called by it, and free to call it back."""

    def received(self, queue: int) -> None:
        """Buffers have come on `queue`: see `Link.receive`."""

    def room(self, queue: int) -> None:
        """Buffers can be sent on `queue` again."""

    def config_changed(self) -> None:
        """The config space may have changed (never called on the host end)."""

    def lost(self, reason: str) -> None:
        """The link is gone for good: the peer left, or broke a rule."""

    def left(self) -> None:
        """The link is left for good, and what is `untaken` on it does not get there any more."""


class Link(ABC):
    """One way to the other end, for one connection's lifetime.

    `features` are the negotiated feature bits. After the owner was told `lost`, nothing comes
    and nothing can be sent, but calling is still harmless.
    """

    features: int
    owner: LinkOwner
    #: The most bytes that can be on their way to us in buffers that were handed out already.
    in_flight: int

    def start(self) -> None:  # noqa: B027
        """Begin, now that the owner is there."""

    @property
    def is_spent(self) -> bool:
        """True if what has come is more than one turn of the event loop is for.

        Nothing more is given in this turn; the owner is told again in the next one.
        """
        return False

    @property
    @abstractmethod
    def config(self) -> bytes:
        """The device's config space as it is now."""

    def write_config(self, offset: int, data: Buffer) -> None:  # noqa: B027
        """Write to the device's config space (guest end, where the device lets it)."""

    @abstractmethod
    def room_for(self, queue: int, header_size: int) -> int:
        """How many bytes of data fit now into the free buffers of `queue`, headers apart."""

    @abstractmethod
    def capacity(self, queue: int, wanted: int | None = None) -> int:
        """Return how many bytes, header included, the next buffer of `queue` holds, or 0.

        On a link without buffers there is one if `wanted` bytes can go; by default, the largest.
        """

    def want_room(self, queue: int) -> bool:
        """Ask to be told `room` when the next buffer can be sent; True: it can already.

        Whoever is told by `room_for` or `capacity` that there is none need not ask.
        """
        return False

    @abstractmethod
    def send(
        self,
        queue: int,
        header: bytes,
        data: Buffer,
        seen: Callable[[], None] | None = None,
        *,
        id: int | None = None,
    ) -> None:
        """Fill the next buffer of `queue`; it goes out with the next `flush`.

        The caller has seen that `capacity` is enough. `seen` is called, outside of the owner's
        calls to the link, once the other end has taken in what this buffer says. `id` is the port
        whose data it is; None: it is a message.
        """

    def untaken(self) -> Mapping[int, int]:
        """Tell of each port how many bytes were sent that the peer has not taken, as far as known.

        Only ports that have any are in it.
        """
        return {}

    @abstractmethod
    def receive(self, queue: int) -> memoryview | None:
        """Give the next buffer that came on `queue`: a view that is good until its `done`."""

    def receive_many(self, queue: int, size: int) -> Sequence[memoryview]:
        """Give the next buffers that came on `queue`, some `size` bytes of them or fewer."""
        buffer = self.receive(queue)
        return () if buffer is None else (buffer,)

    @abstractmethod
    def again(self, queue: int) -> None:
        """Tell the owner `received` once more, when others have had their turn."""

    def hold(self, queue: int) -> Callable[[], None] | None:
        """Keep the buffer that was received last past its `done`, until the result is called.

        None: it cannot be kept, and what is wanted of it must be copied.
        """
        return None

    @abstractmethod
    def done(self, queue: int) -> None:
        """Give back the oldest buffer received on `queue`; effective with the next `flush`."""

    @abstractmethod
    def withhold(self, queue: int) -> None:
        """Like `done`, but the other end gets the buffer back only at `release`.

        Until then it cannot send in it: what it sends without a pause is bounded by its buffers.
        """

    @abstractmethod
    def release(self, queue: int) -> None:
        """Give back, at once, all buffers of `queue` that were withheld."""

    def done_many(self, queue: int, count: int) -> None:
        """Give back the `count` oldest buffers."""
        for _ in range(count):
            self.done(queue)

    @abstractmethod
    def flush(self, queue: int) -> None:
        """Let the other end see everything sent or given back on `queue`, and notify it."""


#: What opening a device gives. The link gets its owner before anything is waited for.
OpenDevice: TypeAlias = tuple[Link, Guest]


def call_soon(call: Callable[[int], None], queue: int) -> None:
    """Call when others have had their turn, once however often it is asked for."""
    trio.lowlevel.current_trio_token().run_sync_soon(call, queue, idempotent=True)

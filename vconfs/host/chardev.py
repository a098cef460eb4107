"""What a chardev is: the far side of a port of the host end.

A chardev joins one port to something outside: a socket, a pty, a program. It is *connected* or
not, and that is what the guest learns by PORT_OPEN. It runs as one task of the host's nursery.
Kinds of chardev are found by entry point (group `vconfs.chardevs`), so that another package can
add one; ours come by the same door.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol, Self

import trio

from vconfs.errors import VconfsError
from vconfs.protocol.events import Buffer

#: The group of entry points by which kinds are found.
_GROUP: Final = "vconfs.chardevs"


class Counters(Protocol):
    """What a chardev counts in its port's counters."""

    dropped: int  # bytes lost by rule


class PortSide(Protocol):
    """A port, as its chardev sees it."""

    id: int
    name: bytes

    @property
    def counters(self) -> Counters:
        """The port's counters."""

    #: Where to hand the guest's data without a task in between: called with each piece, it says
    #: how many bytes it took; the rest is queued for `receive`. The piece is good for that call.
    sink: Callable[[memoryview], int] | None
    #: Where to get data for the guest without a task in between: called with the number of bytes
    #: that can be sent now, it gives at most so many, or none.
    source: Callable[[int], Buffer] | None
    #: How to hang up whoever is at the far side now; None: nobody is, or nobody who could be.
    hang_up_client: Callable[[], None] | None
    #: How to open what is behind the port anew at once, if that is waited for or is a file that may
    #: have been replaced; None: there is nothing to open.
    reopen: Callable[[], None] | None
    #: Tells how many bytes the far side was given and would lose if it was left now, for it has not
    #: read them: an ending waits until there are none. None: what was delivered stays there.
    unread: Callable[[], int] | None
    #: Seconds that a far side which takes nothing is waited for.
    patience: float

    @property
    def guest_connected(self) -> bool:
        """Whether the guest has the port open."""

    def connect(self) -> None:
        """Tell the guest that somebody is there."""

    def disconnect(self) -> None:
        """Tell the guest that nobody is there; what it sent stays if the port caches."""

    def hang_up(self) -> None:
        """Show the guest an end of file, and go on being connected."""

    async def next_session(self) -> None:
        """Wait until the guest opens the port; returns once for each time that it does."""

    async def receive(self, size: int = 1 << 16) -> bytes:
        """Wait for bytes from the guest and give at most `size` of them.

        None: the guest closed the port (only a chardev that `keeps_sessions` is told).
        """

    async def receive_message(self) -> bytes:
        """Wait for one whole write request of the guest and give its bytes."""

    def delivered(self, size: int) -> None:
        """Say that so many bytes of what was received last are with the far side.

        The next `receive` says so of all of them, and `put_back` of those that do not go back. When
        the port is left without any of the three, they are counted as dropped.
        """

    def lost(self, size: int) -> None:
        """Count so many bytes as dropped that were delivered, and have not got there after all."""

    def put_back(self, data: Buffer) -> None:
        """Leave what was received, or the rest of it, to whoever comes next."""

    def listening(self) -> AbstractContextManager[trio.CancelScope]:
        """Receive from the far side in this block, which is cancelled when the port is to end."""

    async def send(self, data: Buffer) -> None:
        """Send all of `data` to the guest, waiting while it throttles us or has no buffers."""

    def send_nowait(self, data: Buffer) -> int:
        """Send what the guest takes at once: the number of bytes, 0 if it takes none now."""


class Chardev(ABC):
    """The far side of one port."""

    #: Whether it wants guest data by whole write requests (`PortSide.receive_message`).
    keeps_boundaries = False
    #: Whether it is told where the guest closed the port (`PortSide.receive` gives no bytes).
    keeps_sessions = False

    @classmethod
    @abstractmethod
    def parse(cls, argument: str) -> Self:
        """Make one of the ARGUMENT of KIND:ARGUMENT; ValueError says what is wrong with it."""

    @abstractmethod
    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve `port` until cancelled; `started` is called when others can connect.

        Raises VconfsError when it cannot start.
        """


def chardev_kinds() -> list[str]:
    """List the kinds of chardevs, those of other packages too."""
    return sorted({point.name for point in entry_points(group=_GROUP)})


def parse_chardev(text: str) -> Chardev:
    """Make a chardev of KIND[:ARGUMENT]; ValueError names what is wrong with either."""
    kind, _, argument = text.partition(":")
    found = list(entry_points(group=_GROUP, name=kind))
    if not found:
        known = ", ".join(chardev_kinds())
        raise ValueError(f"unknown chardev {kind!r}: it is one of {known}")
    if len(found) > 1:
        packages = " and ".join(sorted(_package(point) for point in found))
        raise ValueError(f"chardev {kind!r} is in {packages}: remove one of them")
    try:
        chardev = _load(found[0]).parse(argument)
        if not isinstance(chardev, Chardev):
            raise TypeError(f"parse gave {chardev!r}, which is no Chardev")
    except ValueError:
        raise
    except Exception as error:  # of whatever kind: somebody else may have written it
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"chardev {kind!r} of {_package(found[0])} is broken: {why}") from error
    return chardev


def _load(point: EntryPoint) -> type[Chardev]:
    kind = point.load()
    if not (isinstance(kind, type) and issubclass(kind, Chardev)):
        raise TypeError(f"{point.value} is no subclass of vconfs.host.Chardev")
    return kind


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist else point.value


def describe_failure(error: BaseException) -> str:
    """Say in one line why a chardev failed."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, VconfsError):
        return str(error)
    return " ".join(f"its chardev failed: {type(error).__name__}: {error}".split())

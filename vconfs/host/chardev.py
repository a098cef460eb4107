"""Chardevs: the far sides of the host end's ports.

A chardev joins one port to something outside: a socket, a pty, a program. It is *connected* or
not, which PORT_OPEN reports to the guest. It runs as one task of the host's nursery. Kinds of
chardev are found by entry point (group `vconfs.chardevs`), so that another package can add one;
ours are found in the same way.
"""

from __future__ import annotations

import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, Final, Protocol, Self, TypeAlias

import trio

from vconfs.errors import VconfsError
from vconfs.protocol.events import Buffer

#: The group of entry points by which kinds are found.
_GROUP: Final = "vconfs.chardevs"
#: QEMU's word for a kind → the kinds that do the same here.
_OF_QEMU: Final = {
    "socket": "write unix:PATH or tcp:HOST:PORT to listen, or connect:PATH to connect",
}


#: Serves a port as a file of the host end's mount, until cancelled.
ServeAsFile: TypeAlias = Callable[[trio.TaskStatus[None]], Awaitable[None]]


class Counters(Protocol):
    """The part of a port's counters that its chardev counts."""

    dropped: int  # bytes lost by rule


class PortSide(Protocol):
    """A port as its chardev sees it."""

    id: int
    name: bytes

    @property
    def counters(self) -> Counters:
        """The port's counters."""

    #: Takes the guest's data without a task in between. It is called with each piece, and returns
    #: how many bytes it took; the rest is queued for `receive`. The piece is valid for that call.
    sink: Callable[[memoryview], int] | None
    #: Supplies data for the guest without a task in between. It is called with the number of bytes
    #: that can be sent now, and returns at most that many, or none.
    source: Callable[[int], Buffer] | None
    #: Hangs up the client at the far side. None if there is no client that could be hung up.
    hang_up_client: Callable[[], None] | None
    #: Opens what is behind the port again at once: a file that may have been replaced, or
    #: something that is to be tried again later. None if there is nothing to open.
    reopen: Callable[[], None] | None
    #: Returns how many delivered bytes the far side has not read and would lose if it was left
    #: now; an ending waits until there are none. None if nothing delivered can be lost.
    unread: Callable[[], int] | None
    #: How many seconds to wait for a far side that takes nothing.
    patience: float
    #: Serves the port as a file. None if the host end has no mount.
    as_file: ServeAsFile | None

    @property
    def guest_connected(self) -> bool:
        """True if the guest has the port open."""

    @property
    def console(self) -> bool:
        """True if the port is a console, which people look at."""

    def resize(self, cols: int, rows: int) -> None:
        """Tell the guest the size of the console, in characters."""

    def connect(self) -> None:
        """Tell the guest that the far side is connected."""

    def disconnect(self) -> None:
        """Tell the guest that the far side is gone; what it sent stays if the port caches."""

    def hang_up(self) -> None:
        """Show the guest an end of file, and stay connected."""

    async def next_session(self) -> None:
        """Wait until the guest opens the port; return once for each time that it does."""

    async def receive(self, size: int = 1 << 16) -> bytes:
        """Wait for bytes from the guest and return at most `size` of them.

        Return no bytes when the guest closed the port, if the chardev `keeps_sessions`.
        """

    async def wait_for_data(self) -> None:
        """Wait until there are bytes from the guest that the chardev has not taken."""

    def peek(self, size: int) -> Sequence[Buffer]:
        """Return up to `size` bytes from the guest in pieces, and keep them in the port.

        Call `took` for those that the far side has. This is for a chardev that does not
        `keeps_sessions`.
        """

    def took(self, size: int) -> None:
        """Remove the first `size` bytes, which `peek` has returned and the far side now has."""

    async def receive_message(self) -> bytes:
        """Wait for one whole write request of the guest and return its bytes."""

    def delivered(self, size: int) -> None:
        """Count `size` bytes of what was received last as delivered to the far side.

        The next `receive` counts all that was received as delivered; `put_back` counts what does
        not go back. If the chardev leaves the port without any of the three, the bytes are counted
        as dropped.
        """

    def lost(self, size: int) -> None:
        """Count `size` bytes as dropped that were counted as delivered but did not arrive."""

    def put_back(self, data: Buffer) -> None:
        """Put what was received, or the rest of it, back into the queue for the next client."""

    def listening(self) -> AbstractContextManager[trio.CancelScope]:
        """Receive from the far side in this block, which is cancelled when the port is to end."""

    async def send(self, data: Buffer) -> None:
        """Send all of `data` to the guest, waiting while it throttles us or has no buffers."""

    def send_nowait(self, data: Buffer) -> int:
        """Send what the guest takes at once; return how many bytes, 0 if it takes none now."""


class Chardev(ABC):
    """The far side of one port."""

    #: The forms of the options that may follow its argument, like "mode=MODE". What stands behind
    #: a comma is then one of these or of the port's, and a comma of the argument is written twice;
    #: `vconfs.syntax.url_options.split_options` reads such an argument. None: it keeps its commas.
    options: ClassVar[Sequence[str] | None] = None
    #: True if it takes guest data by whole write requests (`PortSide.receive_message`).
    keeps_boundaries = False
    #: True if it sees where the guest closed the port (`PortSide.receive` returns no bytes there).
    keeps_sessions = False
    #: True if it also takes what the guest sends while it is not connected.
    keeps_all = False
    #: True if it starts programs that may need to gain privileges, for example by sudo.
    starts_programs = False
    #: The capabilities that it needs if the daemon is root, by their numbers in
    #: linux/capability.h, besides `vconfs.system.privileges.ALWAYS_KEPT`.
    capabilities: ClassVar[Collection[int]] = ()

    @classmethod
    @abstractmethod
    def parse(cls, argument: str) -> Self:
        """Make a chardev from the ARGUMENT of KIND:ARGUMENT, or raise ValueError."""

    @abstractmethod
    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve `port` until cancelled; call `started` when others can connect.

        Raise VconfsError if it cannot start.
        """


def chardev_kinds() -> list[str]:
    """Return the kinds of chardevs, including those of other packages."""
    return sorted({point.name for point in _points()})


def parse_chardev(text: str) -> Chardev:
    """Make a chardev from KIND[:ARGUMENT]; raise ValueError if either is wrong."""
    kind, argument = split_kind(text)
    point = _found(kind)
    try:
        chardev = _load(point).parse(argument)
        if not isinstance(chardev, Chardev):
            raise TypeError(f"parse returned {chardev!r}, which is not a Chardev")
    except ValueError:
        raise
    except Exception as error:  # of any kind: the chardev may be another package's
        raise _broken(point, error) from error
    return chardev


def split_kind(text: str) -> tuple[str, str]:
    """Split the text of a chardev into its kind and its argument with options."""
    kind = re.split("[:,]", text, maxsplit=1)[0]
    return kind, text.removeprefix(kind).removeprefix(":")


def options_of(kind: str) -> Sequence[str] | None:
    """Return `Chardev.options` of a kind. Raise ValueError if there is no such kind."""
    point = _found(kind)
    try:
        return _load(point).options
    except Exception as error:  # of any kind: the chardev may be another package's
        raise _broken(point, error) from error


def _points() -> Sequence[EntryPoint]:
    """Return the entry points of all kinds."""
    return _points_in(tuple((folder, _changed(folder)) for folder in sys.path))


@lru_cache(maxsize=1)
def _points_in(folders: Sequence[tuple[str, int]]) -> Sequence[EntryPoint]:
    """Look for entry points in the folders of `sys.path`, as they are since they last changed.

    This reads a file of each installed package, which takes some milliseconds.
    """
    return tuple(entry_points(group=_GROUP))


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def _found(kind: str) -> EntryPoint:
    found = [point for point in _points() if point.name == kind]
    if not found:
        hint = _OF_QEMU.get(kind) or f"it is one of {', '.join(chardev_kinds())}"
        raise ValueError(f"unknown chardev {kind!r}: {hint}")
    if len(found) > 1:
        packages = " and ".join(sorted(_package(point) for point in found))
        raise ValueError(f"chardev {kind!r} is in {packages}: remove one of them")
    return found[0]


def _broken(point: EntryPoint, error: Exception) -> ValueError:
    why = f"{type(error).__name__}: {error}"
    return ValueError(f"chardev {point.name!r} of {_package(point)} is broken: {why}")


def _load(point: EntryPoint) -> type[Chardev]:
    kind = point.load()
    if not (isinstance(kind, type) and issubclass(kind, Chardev)):
        raise TypeError(f"{point.value} is not a subclass of vconfs.host.Chardev")
    return kind


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist else point.value


def describe_failure(error: BaseException) -> str:
    """Return in one line why a chardev failed."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, VconfsError):
        return str(error)
    return " ".join(f"its chardev failed: {type(error).__name__}: {error}".split())

"""The objects that the session passes to a pyfuse3.Operations, and its optional extensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import pyfuse3
from attrs import define, field, frozen

from vconfs.fuse import _kernel_protocol as wire
from vconfs.protocol.events import Buffer


class PortOperations(Protocol):
    """The optional attributes of an operations object that our session uses.

    The `*_nowait` methods have no offset: they are for files that are opened as nonseekable.
    """

    #: The names of operations that never wait, like "open": they are awaited in the order of
    #: arrival, without a task.
    prompt: frozenset[str]

    def read_nowait(self, fh: int, size: int, flags: int) -> Buffer | Sequence[Buffer]:
        """Read up to `size` bytes at once, or raise trio.WouldBlock or pyfuse3.FUSEError.

        The data may be returned in pieces, which are passed to the kernel as they are. `flags` are
        the current flags of the open file. After WouldBlock the caller gets EAGAIN if they include
        O_NONBLOCK; otherwise `read` is awaited. The kernel splits a read above 1 MiB into several
        requests: only the first of them may wait, and any other one that would wait ends the read.
        """

    async def read_pieces(self, fh: int, size: int) -> Sequence[Buffer]:
        """Wait like `read`, and return pieces like `read_nowait`."""

    def read_done(self, fh: int) -> None:
        """Called when the kernel has copied the pieces that were returned last.

        Nothing is awaited between the two.
        """

    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        """Write at once, or raise trio.WouldBlock or pyfuse3.FUSEError; see `read_nowait`.

        With O_APPEND, the rest of a long write cannot be told from a new one, so it may wait.
        `data` is only valid during this call.
        """


@frozen
class RequestContext:
    """The sender of a request; `pid` is the ID of a thread."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


@frozen
class SetattrFields:
    """The attributes that a setattr changes."""

    update_mode: bool
    update_uid: bool
    update_gid: bool
    update_size: bool
    update_atime: bool
    update_mtime: bool
    update_ctime: bool


@frozen
class PollHandle:
    """A handle that wakes the programs that poll an open file."""

    _notify: Callable[[int], None]
    _kh: int

    def notify(self) -> None:
        """Make the kernel call `poll` again."""
        self._notify(self._kh)


@define
class ReaddirToken:
    """A reply to READDIR or READDIRPLUS that is being filled."""

    size: int
    plus: bool
    reply: bytearray = field(factory=bytearray)

    def add(self, name: bytes, entry: pyfuse3.EntryAttributes, next_id: int) -> bool:
        """Add an entry if it fits. Return True if it did."""
        item = wire.dirent(entry.st_ino, next_id, entry.st_mode, name)
        if self.plus:
            item = wire.entry_reply(entry) + item
        if len(self.reply) + len(item) > self.size:
            return False
        self.reply += item
        return True

"""What the session passes to a pyfuse3.Operations, and what such an object may have beyond that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import pyfuse3
from attrs import define, field, frozen

from vconfs.fuse import wire
from vconfs.protocol.events import Buffer


class PortOperations(Protocol):
    """The optional attributes of an operations object that our session makes use of.

    The `*_nowait` methods are for files that are opened as nonseekable: they have no offset.
    """

    #: Names of the handlers that never wait, like "open": they are awaited in the order of
    #: arrival, without a task.
    prompt: frozenset[str]

    def read_nowait(self, fh: int, size: int, flags: int) -> Buffer | Sequence[Buffer]:
        """Read up to `size` bytes at once, or raise trio.WouldBlock or pyfuse3.FUSEError.

        The data may come in pieces, which are handed to the kernel as they are. `flags` are the
        open file's flags of this moment. After WouldBlock the caller gets EAGAIN if they have
        O_NONBLOCK; else `read` is awaited. The kernel makes several requests of a read above
        1 MiB; of these only the first may wait, the others end the read.
        """

    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        """Write at once, or raise trio.WouldBlock or pyfuse3.FUSEError; see `read_nowait`.

        The rest of a long call cannot be told from a new one with O_APPEND; then it may wait.
        `data` is good for this call only.
        """


@frozen
class RequestContext:
    """Who sent a request; `pid` is a thread's id."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


@frozen
class SetattrFields:
    """Which attributes a setattr is about."""

    update_mode: bool
    update_uid: bool
    update_gid: bool
    update_size: bool
    update_atime: bool
    update_mtime: bool
    update_ctime: bool


@frozen
class PollHandle:
    """Wakes whoever polls an open file."""

    _notify: Callable[[int], None]
    _kh: int

    def notify(self) -> None:
        """Let the kernel ask `poll` again."""
        self._notify(self._kh)


@define
class ReaddirToken:
    """The reply to a READDIR or READDIRPLUS that is being filled."""

    size: int
    plus: bool
    reply: bytearray = field(factory=bytearray)

    def add(self, name: bytes, entry: pyfuse3.EntryAttributes, next_id: int) -> bool:
        """Add an entry if it fits."""
        item = wire.dirent(entry.st_ino, next_id, entry.st_mode, name)
        if self.plus:
            item = wire.entry_reply(entry) + item
        if len(self.reply) + len(item) > self.size:
            return False
        self.reply += item
        return True


_stock_readdir_reply = pyfuse3.readdir_reply


def readdir_reply(
    token: ReaddirToken | pyfuse3.ReaddirToken,
    name: bytes,
    attr: pyfuse3.EntryAttributes,
    next_id: int,
) -> bool:
    """Add an entry to a directory's listing; False: it is full.

    It takes the tokens of our session and those of pyfuse3.main().
    """
    if isinstance(token, ReaddirToken):
        return token.add(name, attr, next_id)
    return _stock_readdir_reply(token, pyfuse3.FileNameT(name), attr, next_id)


_sessions_running = 0


@contextmanager
def pyfuse3_takes_our_tokens() -> Iterator[None]:
    """Let pyfuse3.readdir_reply take our tokens as well, for as long as any session runs.

    pyfuse3's own takes pyfuse3's tokens only, which nobody but pyfuse3.main() can make; and
    operations that were written for pyfuse3.main() call that one.
    """
    global _sessions_running
    _sessions_running += 1
    pyfuse3.readdir_reply = readdir_reply
    try:
        yield
    finally:
        _sessions_running -= 1
        if not _sessions_running:
            pyfuse3.readdir_reply = _stock_readdir_reply

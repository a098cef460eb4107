"""Consoles: ptys on console ports, and on other ports if the user asks for it.

Every console port of the guest end has a pty, on which agetty, screen or stty work as on the
kernel's /dev/hvc0, and a number, under which the mount shows it: `hvc0 -> /dev/pts/7`. Consoles are
numbered in the order in which they appear, with the lowest free number. A port that is not a
console can have a pty as well (`-o tty=NAME`); it has no number, only the attribute user.pty.

The pty is an opener of its port, as long as both exist: the host sees the port open at once, and
no unread data is dropped when another opener closes it. These are its rules:

- It takes data only while a process has its slave open. Until then the data waits in the port, up
  to the port's limit; then the host is throttled, for that port alone. So while no process uses the
  pty, a reader of the port's file gets everything.
- While both are read, reads are answered in the order in which they were made, as for any two
  readers of a port: nothing is lost or doubled, but each gets a part. Use one of them.
- What is written to the slave goes to the host like any write. If the host throttles the port, the
  data stays in the pty and the writer waits; a terminal has no ENOSPC.
- A hang-up of the host is not shown: like the kernel's console, the pty continues with the next
  connection. Removing the port hangs up the terminal.
- The pty has the same owner and mode as the port's file, so the same users may use it.
- With `-o exclusive` the pty is the port's only opener: opening the file fails with EBUSY.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Final

import trio
from attrs import define, field, frozen
from trio.lowlevel import ParkingLot

from vconfs.files.announcer import Announcer, Kind
from vconfs.files.tree import ROOT_PLACE, Access, pty_link
from vconfs.guest.opener import Opener
from vconfs.guest.port import Port
from vconfs.overrides import override
from vconfs.system.log_once import LogOnce
from vconfs.system.pipes import Pipe
from vconfs.system.processes import process_of
from vconfs.system.raw_pty import RawPty, open_pty
from vconfs.system.tasks import open_background

log: Final = logging.getLogger(__name__)

#: The most bytes on their way from the port to the pty; the others wait in the port.
_CHUNK = 4096
_PORT_GONE = (errno.ENODEV, errno.ENXIO)


@frozen(eq=False)
class _PtyOpener(Opener):
    """The pty as an opener of its port."""

    console: _Console = field(kw_only=True)

    @override
    @property
    def reads(self) -> bool:
        """True while a process has the pty's slave open."""
        return self.console.pty.occupied

    @override
    def owed(self) -> int:
        """Return the bytes on their way in either direction, and unread in the pty."""
        console = self.console
        return len(console.to_pty) + len(console.from_pty) + console.pty.unread()


@define(eq=False)
class _Console:
    """The pty of one port, and the copying between the two."""

    port: Port
    pty: RawPty
    closing: ExitStack
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    _changed: ParkingLot = field(factory=ParkingLot)
    _size: tuple[int, int] = (0, 0)
    #: Data taken from the port and not yet written to the pty; and in the other direction.
    to_pty: memoryview = field(factory=lambda: memoryview(b""))
    from_pty: memoryview = field(factory=lambda: memoryview(b""))

    def port_changed(self) -> None:
        """Called when the port's state or size may have changed."""
        self._changed.unpark_all()
        if self.port.size != self._size:
            self._size = self.port.size
            self.pty.resize(*self._size)

    async def run(self) -> None:
        """Copy until cancelled, or until the port is gone."""
        opener = _PtyOpener(*process_of(os.getpid()), console=self)
        with self.closing, self.scope:
            try:
                await self._open(opener)
                while True:
                    await self.pty.wait_occupied()
                    async with open_background() as nursery:
                        nursery.start_soon(self._to_pty)
                        await self._from_pty()
            except* OSError as errors:
                for error in errors.exceptions:  # ENODEV, ENXIO: the port is gone
                    if isinstance(error, OSError) and error.errno not in _PORT_GONE:
                        log.warning("vcon%d: its pty failed: %s", self.port.id, error.strerror)
            finally:
                in_hand = len(self.to_pty) + len(self.from_pty)
                self.port.counters.dropped += in_hand + self.pty.take_unread()
                self.port.close(opener)

    async def _open(self, opener: Opener) -> None:
        while True:
            try:
                return self.port.open(opener)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                await self._changed.park()  # exclusive, and another program has it open

    async def _to_pty(self) -> None:
        port, master = self.port, Pipe(self.pty.master)
        while True:
            while self.to_pty:
                await master.writable()
                self.to_pty = self.to_pty[master.send_nowait(self.to_pty) :]
            await master.writable()  # until then the data stays in the port
            self.to_pty = memoryview(b"".join(await port.take(_CHUNK)))
            port.give_back()
            if not self.to_pty:  # a hang-up, which the terminal does not see
                while not (port.host_connected or port.queued or port.removed):
                    await self._changed.park()

    async def _from_pty(self) -> None:
        """Copy what is written to the slave, until its last opener closes it."""
        master = Pipe(self.pty.master)
        while True:
            while self.from_pty:
                self.from_pty = self.from_pty[await self._send(self.from_pty) :]
            while self.port.ending:  # nothing more is accepted
                await self._changed.park()
            try:
                self.from_pty = memoryview(await master.receive())
            except OSError as error:
                if error.errno == errno.EIO:
                    return
                raise

    async def _send(self, data: memoryview) -> int:
        try:
            return await self.port.write(data, accepted=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOTCONN):
                raise
        await self._changed.park()
        return 0


class Consoles:
    """The ptys of all ports; an observer of the manager.

    `wanted` returns whether a port should have a pty, by its id, its name and its being a console.
    `access_for` returns who may use it; it is called when the port is renamed. The ptys are served
    by tasks of `nursery`, and end with it.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        announcer: Announcer,
        wanted: Callable[[Port], bool],
        access_for: Callable[[Port], Access],
    ) -> None:
        self._nursery = nursery
        self._announcer = announcer
        self._wanted = wanted
        self._access_for = access_for
        self._trouble = LogOnce(log)
        self._consoles: dict[Port, _Console | None] = {}  # None: no pty could be opened
        #: What `wanted` was last asked about: the name of the port, and if it is a console.
        self._asked: dict[Port, tuple[bytes, bool]] = {}

    def port_added(self, port: Port) -> None:
        """Open a pty for the port if it should have one."""
        self.port_changed(port)

    def port_renamed(self, port: Port, old: bytes) -> None:
        """Change who may use the pty, by the new name; `port_changed` follows."""
        if console := self._consoles.get(port):
            self._give_away(console)

    def port_changed(self, port: Port) -> None:
        """Open or close the port's pty as wanted, and notify it of the change."""
        if port.removed:
            return
        if self._asked.get(port) != (asked := (port.name, port.console)):
            self._asked[port] = asked
            if not self._wanted(port):
                self._end(port)
            elif port not in self._consoles:
                self._begin(port)
        if console := self._consoles.get(port):
            self._number(port)
            console.port_changed()

    def port_removed(self, port: Port) -> None:
        """Hang up the terminal."""
        self._asked.pop(port, None)
        self._end(port)

    def _begin(self, port: Port) -> None:
        closing = ExitStack()
        self._consoles[port] = None
        try:
            pty = closing.enter_context(open_pty())
        except OSError as error:
            kind = "none", error.errno
            self._trouble.warning(kind, "vcon%d has no pty: %s", port.id, error.strerror)
            return
        console = self._consoles[port] = _Console(port, pty, closing)
        self._give_away(console)
        port.pty = pty.path
        self._nursery.start_soon(console.run)

    def _give_away(self, console: _Console) -> None:
        access = self._access_for(console.port)
        try:
            console.pty.give_to(access.uid, access.gid, access.mode)
        except OSError as error:
            kind, port_id = ("owner", error.errno), console.port.id
            self._trouble.warning(
                kind, "vcon%d: cannot change the owner of its pty: %s", port_id, error.strerror
            )

    def _end(self, port: Port) -> None:
        console = self._consoles.pop(port, None)
        if console is None:
            return
        console.scope.cancel()
        number, port.hvc, port.pty = port.hvc, None, ""
        if number is not None:
            link = pty_link(number, port.id)
            self._announcer.removed(ROOT_PLACE, link.name, link.inode)

    def _number(self, port: Port) -> None:
        """Assign the lowest free number to a port that is a console, or has become one."""
        if port.console and port.hvc is None:
            taken = {other.hvc for other in self._consoles}
            port.hvc = next(number for number in count() if number not in taken)
            self._announcer.created(ROOT_PLACE, b"hvc%d" % port.hvc, Kind.LINK)

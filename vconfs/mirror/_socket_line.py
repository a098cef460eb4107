"""Joins the host's side of one port to the unix socket that a hypervisor made for it.

Theory of operation
-------------------
A hypervisor serves one client of such a socket at a time. So the connection is there only while a
program has the port open: a `_Stay` is the time from the first open to the last close, and has a
task of its own. The first try to connect belongs to the open, which waits for it and fails with its
error. A connection that is lost later is a hang-up of the guest, and is tried again with growing
pauses.

Nothing is queued here. What the guest sends is received while the port has space for it, and
otherwise stays in the socket, where it stops the hypervisor. What programs write goes at once to
the socket, or they wait for room in it. So the port behaves as one of the standard's dialect.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field
from trio.lowlevel import ParkingLot

from vconfs.guest.port import Port, PortLine
from vconfs.mirror._connecting import connect
from vconfs.overrides import override
from vconfs.protocol.events import Buffer
from vconfs.syntax.printable import printable
from vconfs.system.backoff import Backoff
from vconfs.system.descriptors import has_room
from vconfs.system.log_once import LogOnce
from vconfs.system.unix_sockets import close_socket, receive_bytes

_trouble: Final = LogOnce(logging.getLogger(__name__))

#: How many bytes to receive in one turn of the event loop.
_CHUNK: Final = 1 << 16


@define(eq=False)
class _Connection:
    """One connection to the hypervisor."""

    port: Port
    sock: trio.socket.SocketType
    #: True if nothing can be sent any more; what came before can still be read.
    broken: bool = field(init=False, default=False)
    #: True if a writer or a poller waits for room.
    _wanted: bool = field(init=False, default=False)
    _asked: ParkingLot = field(init=False, factory=ParkingLot)
    _room: ParkingLot = field(init=False, factory=ParkingLot)
    _space: ParkingLot = field(init=False, factory=ParkingLot)

    @property
    def has_room(self) -> bool:
        return not self.broken and has_room(self.sock.fileno())

    def want_room(self) -> None:
        """Notify writers and pollers when there is room; a broken connection never has any."""
        if not self.broken:
            self._wanted = True
            self._asked.unpark_all()

    def send(self, data: Buffer) -> int:
        """Send as much as fits; raise trio.WouldBlock if nothing does."""
        if self.broken:
            raise trio.WouldBlock
        try:
            return _send_now(self.sock.fileno(), data)
        except BlockingIOError:
            self.want_room()
        except OSError:  # `receive` will find the end, after what came before
            self.broken = True
        raise trio.WouldBlock

    async def wait_room(self) -> None:
        await self._room.park()

    def check(self) -> None:
        """Let waiting writers check whether they still have to wait."""
        self._room.unpark_all()

    def has_space(self) -> None:
        """Receive more: the port has space again."""
        self._space.unpark_all()

    async def serve(self) -> None:
        """Receive until the end, and notify writers and pollers that wait for room."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_room)
            await self._receive()
            nursery.cancel_scope.cancel()

    async def _receive(self) -> None:
        while True:
            while not self.port.wants_data:
                await self._space.park()
            try:
                data = await receive_bytes(self.sock, _CHUNK)
            except OSError:
                return  # reset: as good as closed
            if not data:
                return
            self.port.feed(data)

    async def _watch_room(self) -> None:
        while True:
            while not self._wanted:
                await self._asked.park()
            await trio.lowlevel.wait_writable(self.sock)
            self._wanted = False
            self._room.unpark_all()
            self.port.room_came()


def _send_now(descriptor: int, data: Buffer) -> int:
    sock = socket.socket(fileno=descriptor)
    try:
        return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        sock.detach()


@define(eq=False)
class _Stay:
    """The time from the first open to the last close of a port."""

    _port: Port
    _path: str
    _limiter: trio.CapacityLimiter
    #: Ends it.
    scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    #: Set when the first try to connect is over; the error if it failed.
    tried: trio.Event = field(init=False, factory=trio.Event)
    refusal: OSError | None = field(init=False, default=None)
    connection: _Connection | None = field(init=False, default=None)
    tries: Backoff = field(init=False)

    def __attrs_post_init__(self) -> None:
        where = printable(self._path)
        self.tries = Backoff(where, f"{where}: connected again")

    def end(self) -> None:
        """Let the socket go at once, so that the next client can have it."""
        self.scope.cancel()
        if self.connection is not None:
            self._let_go(self.connection)
        self.tried.set()

    async def run(self) -> None:
        """Connect, and stay connected, until the scope is cancelled or the first try fails."""
        with self.scope:
            try:
                sock = await connect(self._path, self._limiter)
            except OSError as error:
                self._refuse(error)
                return
            finally:
                self.tried.set()
            await self._serve(sock)
            while True:
                await self.tries.wait()
                await self._serve(await self._reconnected())

    def _refuse(self, error: OSError) -> None:
        """Make the opens fail."""
        self.refusal = error
        if error.errno in (errno.EACCES, errno.EPERM):
            kind = self._path, error.errno
            _trouble.warning(kind, "%s: %s", printable(self._path), error.strerror)

    async def _reconnected(self) -> trio.socket.SocketType:
        """Try until a connection is made, with growing pauses."""
        while True:
            try:
                return await connect(self._path, self._limiter)
            except OSError as error:
                await self.tries.failed(error)

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        self.connection = connection = _Connection(self._port, sock)
        self.tries.succeeded()
        self._port.set_connected(True)
        try:
            await connection.serve()
        finally:
            if self.connection is connection:  # else `end` was called
                self._let_go(connection)
                self._port.set_connected(False)

    def _let_go(self, connection: _Connection) -> None:
        self.connection = None
        close_socket(connection.sock)
        connection.check()


@define(eq=False)
class SocketLine(PortLine):
    """The line of a `Port` to the socket at a path."""

    _port: Port
    _path: str
    #: Runs the task of each stay.
    _nursery: trio.Nursery
    throttles: bool = False
    can_refuse: bool = True
    #: Of a path that is never answered, one thread at a time waits.
    _limiter: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(1))
    _stay: _Stay | None = field(init=False, default=None)

    @override
    @property
    def in_flight(self) -> int:
        return 0

    @override
    def open_port(self, port_id: int, opened: bool) -> None:
        if not opened:
            self._stop()
        elif self._stay is None:
            self._stay = _Stay(self._port, self._path, self._limiter)
            self._nursery.start_soon(self._stay.run)

    async def confirm_open(self) -> None:
        """Wait until the hypervisor has taken the open. Raise OSError if it refuses."""
        if (stay := self._stay) is not None:
            await stay.tried.wait()
            if stay.refusal is not None:
                raise OSError(stay.refusal.errno, stay.refusal.strerror)

    def try_now(self) -> None:
        """Try again at once, if the connection is lost: the socket is a new one."""
        if self._stay is not None:
            self._stay.tries.try_now()

    def _stop(self) -> None:
        """Let the socket go, because the port is closed or removed."""
        stay, self._stay = self._stay, None
        if stay is not None:
            stay.end()
            self._port.set_connected(False)

    @property
    def _connection(self) -> _Connection | None:
        return None if self._stay is None else self._stay.connection

    @override
    def has_room(self, port_id: int) -> bool:
        return self._connection is not None and self._connection.has_room

    @override
    def want_room(self, port_id: int) -> None:
        if self._connection is not None and not self._connection.has_room:
            self._connection.want_room()

    @override
    def send_nowait(self, port_id: int, data: Buffer) -> int:
        if self._connection is None:
            raise trio.WouldBlock
        sent = self._connection.send(data)
        if self._port.tap is not None:
            self._port.tap.sent(memoryview(data)[:sent])
        return sent

    @override
    def send_later(self, port_id: int, data: Buffer) -> int:
        """Raise trio.WouldBlock: ports do not share a line here."""
        raise trio.WouldBlock

    @override
    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        while (connection := self._connection) is not None and wanted():
            try:
                return self.send_nowait(port_id, data)
            except trio.WouldBlock:
                await connection.wait_room()
        return 0

    @override
    def nudge(self, port_id: int) -> None:
        if not self._port.attached:  # it was removed, or the mount ends
            self._stop()
        elif self._connection is not None:
            self._connection.check()

    @override
    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None:
        """Do nothing; never called, because what is not read stays in the socket."""

    @override
    def refill(self, port_id: int) -> None:
        if self._connection is not None:
            self._connection.has_space()

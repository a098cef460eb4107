"""Streams over sockets: unix, tcp, vsock."""

from __future__ import annotations

import os
import re
import socket
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Final, Self

import trio
from attrs import frozen

from vconfs.errors import PeerAbsentError, VconfsError
from vconfs.overrides import override
from vconfs.streams.stream_address import WINDOW_OPTION, NextGuest, StreamAddress, window_option
from vconfs.streams.wire import TcpWire, Wire
from vconfs.syntax.addresses import bracketed, tcp_address
from vconfs.syntax.paths import socket_path
from vconfs.syntax.url_options import split_options
from vconfs.system.listening import Door, listening_at, listening_on
from vconfs.system.unix_sockets import closing, connected_to, read_bytes, takes_rights

_CID_MAX: Final = (1 << 32) - 1
#: The buffer size that we request for a unix socket, so that a write of 1 MiB is sent at once. The
#: kernel gives us no more than net.core.wmem_max.
_BUFFER_SIZE: Final = 1 << 20
#: How many guests can wait to be let in: after a fault all of a fleet may come at once.
_BACKLOG: Final = 128
#: Seconds to try again while more are waiting than that.
_CROWD: Final = 5.0
#: A silent TCP peer is probed after `_IDLE` seconds. After `_PROBES` unanswered probes it is lost.
_IDLE, _PROBES = 5, 3
_PROBE_PAUSE: Final = 3
#: The most unsent bytes in the kernel: unlike these, data that waits here can be overtaken.
_UNSENT_MAX: Final = 1 << 17
#: Milliseconds for the peer to acknowledge data.
_SILENCE_MAX: Final = 1000 * (_IDLE + _PROBES * _PROBE_PAUSE)


class SocketAddress(StreamAddress):
    """The base of streams over sockets."""

    has_many_peers = True
    pause_max = 0.05  # any program can connect and fail, and the next may be a guest

    @override
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Wire]:
        try:
            sock = await self._connected()
        except (OSError, UnicodeError) as error:
            raise PeerAbsentError(f"cannot connect to {self._where}: {_why(error)}") from None
        with closing(sock):
            yield self._wire(sock)

    @override
    @asynccontextmanager
    async def listen(self) -> AsyncIterator[NextGuest]:
        async with self._listening() as listeners:
            with Door(listeners) as door:
                yield lambda: self._accepted(door)

    @asynccontextmanager
    async def _accepted(self, door: Door) -> AsyncIterator[Wire]:
        with closing(await door.accept()) as sock:
            yield self._wire(sock)

    def _wire(self, sock: trio.socket.SocketType) -> Wire:
        read = read_bytes if takes_rights(sock) else os.read
        return Wire(sock.fileno(), sock.fileno(), read)

    @property
    @abstractmethod
    def _where(self) -> str: ...

    @abstractmethod
    async def _connected(self) -> trio.socket.SocketType: ...

    @abstractmethod
    def _listening(self) -> AbstractAsyncContextManager[Sequence[socket.socket]]: ...


def _why(error: OSError | UnicodeError) -> str:
    """Return why a connection failed; if several addresses of a name were tried, why the first."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup) and isinstance(cause.exceptions[0], OSError):
        error = cause.exceptions[0]
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


@frozen
class UnixAddress(SocketAddress):
    """A unix socket."""

    path: str

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Parse PATH[,window=N]. Raise ValueError if it is wrong."""
        path, options = split_options("unix", rest, WINDOW_OPTION)
        return cls(socket_path("unix", path), window=window_option(options))

    def _wire(self, sock: trio.socket.SocketType) -> Wire:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_SIZE)
        return super()._wire(sock)

    @property
    def _where(self) -> str:
        return self.path

    async def _connected(self) -> trio.socket.SocketType:
        return await connected_to(self.path, patience=_CROWD)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[Sequence[socket.socket]]:
        with listening_at(self.path, backlog=_BACKLOG) as listener:
            yield [listener]


@frozen
class TcpAddress(SocketAddress):
    """A TCP port. The peer is probed, so that a broken network ends the connection."""

    host: str
    service: int

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Parse HOST:PORT[,window=N], an IPv6 address in brackets. Raise ValueError if wrong."""
        address, options = split_options("tcp", rest, WINDOW_OPTION)
        return cls(*tcp_address(address), window=window_option(options))

    @property
    def _where(self) -> str:
        return f"{bracketed(self.host)}:{self.service}"

    async def _connected(self) -> trio.socket.SocketType:
        return (await trio.open_tcp_stream(self.host, self.service)).socket

    def _listening(self) -> AbstractAsyncContextManager[Sequence[socket.socket]]:
        return listening_on(self.host, self.service, backlog=_BACKLOG)

    def _wire(self, sock: trio.socket.SocketType) -> Wire:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_NODELAY, 1),
            (socket.TCP_KEEPIDLE, _IDLE),
            (socket.TCP_KEEPINTVL, _PROBE_PAUSE),
            (socket.TCP_KEEPCNT, _PROBES),
            (socket.TCP_USER_TIMEOUT, _SILENCE_MAX),
            (socket.TCP_NOTSENT_LOWAT, _UNSENT_MAX),
        ):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        return TcpWire(sock)


@frozen
class VsockAddress(SocketAddress):
    """A vsock port between a virtual machine and its host. To listen on any CID, write -1."""

    cid: int
    service: int

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Parse CID:PORT[,window=N]. Raise ValueError if it is wrong."""
        address, options = split_options("vsock", rest, WINDOW_OPTION)
        found = re.fullmatch("(-1|[0-9]{1,10}):([0-9]{1,10})", address)
        if not found or max(map(int, found.groups())) > _CID_MAX:
            raise ValueError(f"vsock needs two numbers: vsock:CID:PORT, not {address!r}")
        cid, service = map(int, found.groups())
        return cls(cid & _CID_MAX, service, window=window_option(options))

    @property
    def _where(self) -> str:
        return f"vsock {self.cid}:{self.service}"

    async def _connected(self) -> trio.socket.SocketType:
        sock = trio.socket.socket(socket.AF_VSOCK)
        try:
            await sock.connect((self.cid, self.service))
        except BaseException:
            sock.close()
            raise
        return sock

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[Sequence[socket.socket]]:
        with ExitStack() as stack:
            try:
                listener = stack.enter_context(socket.socket(socket.AF_VSOCK))
                listener.bind((self.cid, self.service))
                listener.listen(_BACKLOG)
            except OSError as error:
                why = error.strerror
                raise VconfsError(f"cannot listen on {self._where}: {why}") from None
            yield [listener]

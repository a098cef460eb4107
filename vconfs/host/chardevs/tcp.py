"""The tcp chardev, and how it knows that a client is gone.

A peer that closes and a peer that only shuts its sending side down (`nc -N`) send the same FIN.
The second one still listens, and must not lose what the guest answers; but the guest has to be
told of the first one, and the next client is to have its turn. So after the FIN:

- of a peer on this machine the kernel tells in /proc/net/tcp whether any program has its end open;
- keepalive probes reach any peer: one that closed answers with a reset as soon as its kernel has
  forgotten the connection, which takes a minute (its tcp_fin_timeout);
- a peer elsewhere has to go at once when another client waits.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, Self

import trio
from attrs import frozen

from vconfs.errors import VconfsError
from vconfs.host.chardev import PortSide
from vconfs.host.chardevs.client import Client, SocketClient, wait_hang_up
from vconfs.host.chardevs.listener import BACKLOG, Door, Listener
from vconfs.system.backoff import Pauses

#: Seconds from one look at the peer's end to the next.
_LOOK_FIRST, _LOOK_MAX = 0.02, 0.5
#: Seconds of silence before a probe, and between probes.
_PROBE: Final = 1
_WAYS_OUT: Final = {
    errno.EADDRINUSE: ": choose another port",
    errno.EACCES: ": choose a port above 1023",
    errno.EADDRNOTAVAIL: ": choose an address of this machine",
}


@frozen
class Tcp(Listener):
    """Listens on a TCP port, at all addresses that the host's name has."""

    host: str
    service: int

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take HOST:PORT; an IPv6 address stands in brackets, and no host is localhost."""
        host, colon, service = argument.rpartition(":")
        if not colon or "\0" in host or not _is_port(service):
            raise ValueError(f"tcp needs a host and a port: tcp:HOST:PORT, not {argument!r}")
        return cls(host.removeprefix("[").removesuffix("]") or "localhost", int(service))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Sequence[socket.socket]]:
        """See `Listener.listening`."""
        with ExitStack() as stack:
            try:
                listeners = await self._listen(stack)
            except (OSError, UnicodeError) as error:
                raise self._cannot(error) from None
            yield listeners

    async def _listen(self, stack: ExitStack) -> list[socket.socket]:
        found = await trio.socket.getaddrinfo(self.host, self.service, type=socket.SOCK_STREAM)
        listeners: list[socket.socket] = []
        for last, (family, kind, protocol, _, address) in enumerate(found, 1 - len(found)):
            try:
                listener = stack.enter_context(socket.socket(family, kind, protocol))
                _listen_at(listener, address)
            except OSError as error:
                # A name may have IPv6 addresses where there is no IPv6.
                absent = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
                if not absent or (last == 0 and not listeners):
                    raise
            else:
                listeners.append(listener)
        return listeners

    def _cannot(self, error: OSError | UnicodeError) -> VconfsError:
        where = f"[{self.host}]" if ":" in self.host else self.host
        what, way_out = "this is no host name", ""
        if isinstance(error, OSError):
            what, way_out = error.strerror or str(error), _WAYS_OUT.get(error.errno or 0, "")
        return VconfsError(f"cannot listen on {where}:{self.service}: {what}{way_out}")

    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        return _TcpClient(sock, door)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65535


def _listen_at(listener: socket.socket, address: tuple[object, ...]) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(address)
    listener.listen(BACKLOG)


class _TcpClient(SocketClient):
    """The peer of a TCP connection."""

    def __init__(self, sock: trio.socket.SocketType, door: Door) -> None:
        super().__init__(sock)
        self._door = door
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def gone(self) -> None:
        """See `Client`, and the top of this file."""
        _probe(self._sock)
        pauses = Pauses(_LOOK_FIRST, _LOOK_MAX)
        while inode := _peer_inode(self._sock):
            with trio.move_on_after(pauses.next()):
                return await wait_hang_up(self._sock.fileno())
        if inode is None:
            await wait_hang_up(self._sock.fileno(), self._door.fileno())

    def unread(self) -> int:
        """See `Client`: what the peer's kernel has not acknowledged."""
        answer = fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, bytes(4))
        return int(struct.unpack("i", answer)[0])

    def leave(self) -> int:
        """See `Client`: a stream that has not got there whole ends in a reset, not a good end."""
        if unread := self.unread():
            linger = struct.pack("ii", 1, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return unread


def _probe(sock: trio.socket.SocketType) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _peer_inode(sock: trio.socket.SocketType) -> int | None:
    """Give the inode of the peer's socket: 0, no program has it open; None, it is elsewhere."""
    table = "/proc/net/tcp6" if sock.family == socket.AF_INET6 else "/proc/net/tcp"
    ends = [_in_table(sock.family, sock.getpeername()), _in_table(sock.family, sock.getsockname())]
    for line in Path(table).read_text().splitlines():
        columns = line.split()
        if columns[1:3] == ends:
            return int(columns[9])
    return None


def _in_table(family: int, address: tuple[str, int]) -> str:
    """Write an address as /proc/net/tcp does: words of the machine's byte order, the port."""
    packed = socket.inet_pton(family, address[0].partition("%")[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"

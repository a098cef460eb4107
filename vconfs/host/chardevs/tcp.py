"""The tcp chardev, and how it finds out that a client is gone.

A peer that closes and a peer that only shuts down its sending side (`nc -N`) send the same FIN.
The second still listens, and must not lose what the guest answers; but if the peer has closed, the
guest must be told, and the next client must have its turn. So after the FIN:

- for a peer on this machine, /proc/net/tcp shows whether any program has its end open;
- keepalive probes reach any peer: one that closed answers with a reset as soon as its kernel has
  forgotten the connection, which takes a minute (its tcp_fin_timeout);
- a peer on another machine is dropped at once when another client waits.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar, Final, Self

import trio
from attrs import frozen

from vconfs.host.chardev import PortSide
from vconfs.host.chardevs._client import Client, SocketClient
from vconfs.host.chardevs._listener import Listener
from vconfs.overrides import override
from vconfs.syntax.addresses import tcp_address
from vconfs.syntax.url_options import split_options
from vconfs.system.backoff import Pauses
from vconfs.system.edges import Watch, wait_hang_up
from vconfs.system.listening import Door, listening_on
from vconfs.system.queue_sizes import bytes_to_send

#: Seconds between two checks of the peer's end.
_LOOK_FIRST, _LOOK_MAX = 0.02, 0.5
#: Seconds of silence before a probe, and between probes.
_PROBE: Final = 1


@frozen
class Tcp(Listener):
    """Listens on a TCP port, at all addresses of HOST."""

    host: str
    service: int
    options: ClassVar[Sequence[str] | None] = ()

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take HOST:PORT; an IPv6 address is in brackets, and an empty HOST means localhost."""
        address, _ = split_options("tcp", argument)
        return cls(*tcp_address(address))

    @override
    def listening(self) -> AbstractAsyncContextManager[Sequence[socket.socket]]:
        return listening_on(self.host, self.service)

    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        return _TcpClient(sock, door)


class _TcpClient(SocketClient):
    """The peer of a TCP connection."""

    def __init__(self, sock: trio.socket.SocketType, door: Door) -> None:
        super().__init__(sock)
        self._door = door
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @override
    async def gone(self) -> None:
        """Wait as the top of this file describes."""
        _probe(self._sock)
        pauses = Pauses(_LOOK_FIRST, _LOOK_MAX)
        while inode := _peer_inode(self._sock):
            with trio.move_on_after(pauses.next()):
                return await wait_hang_up(self._sock.fileno())
        if inode is None:
            with Watch({self._sock.fileno(): 0, **self._door.events}) as watch:
                await watch.wait()

    @override
    def unread(self) -> int:
        """Return how many bytes the peer's kernel has not acknowledged."""
        return bytes_to_send(self._sock.fileno())

    @override
    def leave(self) -> int:
        """Leave; a stream that has not arrived whole ends with a reset, not a clean end."""
        if unread := self.unread():
            linger = struct.pack("ii", 1, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return unread


def _probe(sock: trio.socket.SocketType) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _peer_inode(sock: trio.socket.SocketType) -> int | None:
    """Return the inode of the peer's socket, 0 if no program has it open.

    Return None if the peer is on another machine.
    """
    table = "/proc/net/tcp6" if sock.family == socket.AF_INET6 else "/proc/net/tcp"
    ends = [_in_table(sock.family, sock.getpeername()), _in_table(sock.family, sock.getsockname())]
    for line in Path(table).read_text().splitlines():
        columns = line.split()
        if columns[1:3] == ends:
            return int(columns[9])
    return None


def _in_table(family: int, address: tuple[str, int]) -> str:
    """Format an address as /proc/net/tcp does: words in the machine's byte order, then the port."""
    packed = socket.inet_pton(family, address[0].partition("%")[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"

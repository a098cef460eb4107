"""The client of the seqpacket chardev: one packet for each write request of the guest."""

from __future__ import annotations

import errno
import logging
import select
import socket
from typing import Final

import trio

from vconfs.host._messages import MESSAGE_MAX
from vconfs.host.chardev import PortSide
from vconfs.host.chardevs._client import Client
from vconfs.overrides import override
from vconfs.protocol.events import Buffer
from vconfs.system.edges import wait_hang_up
from vconfs.system.log_once import LogOnce
from vconfs.system.queue_sizes import bytes_to_read
from vconfs.system.unix_sockets import receive_packet

log: Final = logging.getLogger(__name__)

_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python has no name for it


class PacketClient(Client):
    """The peer of a connected seqpacket socket."""

    def __init__(self, sock: trio.socket.SocketType, port: PortSide) -> None:
        self._sock = sock
        self._port = port
        self._buffer = bytearray(MESSAGE_MAX)
        self._trouble = LogOnce(log)
        _large_buffer(sock, 2 * MESSAGE_MAX)  # the kernel counts its own overhead, too

    @override
    async def receive(self) -> Buffer:
        """Wait for the next packet that is neither empty nor too large."""
        while True:
            try:
                size = await receive_packet(self._sock, self._buffer)
            except OSError:
                return b""  # reset: as good as closed
            if size > MESSAGE_MAX:
                self._port.counters.dropped += size
                self._warn("from the client", size)
            elif size:
                return memoryview(self._buffer)[:size]
            elif self._all_said():
                return b""

    @override
    async def take_from(self, port: PortSide) -> None:
        """Hand over one write request of the guest."""
        await trio.lowlevel.wait_writable(self._sock)
        packet = await port.receive_message()
        if not packet:
            return
        try:
            await self._sock.send(packet)
            port.delivered(len(packet))
        except BaseException as error:
            if not isinstance(error, OSError) or error.errno != errno.EMSGSIZE:
                port.put_back(packet)
                raise
            port.delivered(len(packet))
            port.lost(len(packet))
            self._warn("from the guest", len(packet))

    @override
    async def gone(self) -> None:
        await wait_hang_up(self._sock.fileno())

    def _all_said(self) -> bool:
        """True if reading no bytes meant the end, and not an empty packet, which looks the same."""
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0)) and not bytes_to_read(self._sock.fileno())

    def _warn(self, whence: str, size: int) -> None:
        message = "port %d: a packet of %d bytes %s is too large, dropped"
        self._trouble.warning("dropped", message, self._port.id, size, whence)


def _large_buffer(sock: trio.socket.SocketType, size: int) -> None:
    """Let a socket take a packet of this size, or the largest that we are allowed."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

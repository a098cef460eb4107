"""Copying between a port and what is outside."""

from __future__ import annotations

import os
import select
import socket
from typing import Final

import trio

from vconfs.host.chardev import PortSide

#: Read from outside this much at a time.
CHUNK: Final = 1 << 16
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python has no name for it


async def join_socket(
    port: PortSide, sock: trio.socket.SocketType, successors: trio.socket.SocketType | None = None
) -> None:
    """Copy both ways between a port and a connected stream socket until that is closed.

    A peer that only shuts its sending side down goes on receiving until it closes. Over TCP one
    cannot tell these apart before something is sent, so there it also has to go when another
    client waits at `successors`, the listening socket.
    """
    with sock:
        port.connect()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_port_to_socket, port, sock, nursery.cancel_scope)
                await _socket_to_port(port, sock)
                await _wait_hang_up(sock, successors)
                nursery.cancel_scope.cancel()
        finally:
            port.disconnect()


async def _socket_to_port(port: PortSide, sock: trio.socket.SocketType) -> None:
    while data := await _receive(sock):
        await port.send(data)


async def _receive(sock: trio.socket.SocketType) -> bytes:
    try:
        return await sock.recv(CHUNK)
    except OSError:
        return b""  # reset: as good as closed


async def _port_to_socket(
    port: PortSide, sock: trio.socket.SocketType, scope: trio.CancelScope
) -> None:
    while True:
        await trio.lowlevel.wait_writable(sock)  # until then the data is left in the port
        data = memoryview(await port.receive())
        try:
            while data:
                data = data[await sock.send(data) :]
        except OSError:
            scope.cancel()  # the peer is gone
            return


async def _wait_hang_up(
    sock: trio.socket.SocketType, successors: trio.socket.SocketType | None
) -> None:
    """Wait until a peer that has shut its sending side down closes the rest as well.

    An epoll set of its own, for the peer's end of file keeps the socket readable for ever.
    """
    with select.epoll() as news:
        news.register(sock.fileno(), 0)  # EPOLLHUP and EPOLLERR are always told
        if successors is not None:
            news.register(successors.fileno(), select.EPOLLIN)
        await trio.lowlevel.wait_readable(news)


class Pipe:
    """A non-blocking descriptor of a pipe, fifo, pty or file, as a stream."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor = descriptor

    async def receive(self) -> bytes:
        """Wait for bytes; none: end of file."""
        while True:
            try:
                return os.read(self.descriptor, CHUNK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.descriptor)

    async def send_all(self, data: bytes) -> None:
        """Send all of `data`; OSError."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:
                await self.writable()

    async def writable(self) -> None:
        """Wait until something can be sent."""
        await trio.lowlevel.wait_writable(self.descriptor)


def large_buffer(sock: trio.socket.SocketType, size: int) -> None:
    """Let a socket take a packet of this size."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

"""Chardevs on sockets: unix, connect, tcp, seqpacket."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from abc import abstractmethod
from contextlib import suppress
from typing import Final, Self

import trio
from attrs import frozen

from vconfs.host.chardev import Chardev, ChardevError, PortSide
from vconfs.host.chardevs.join import join_socket, large_buffer
from vconfs.host.port import MESSAGE_MAX

log = logging.getLogger(__name__)

#: The longest path of a unix socket: sockaddr_un, less the NUL.
_PATH_MAX: Final = 107
_RETRY_FIRST, _RETRY_MAX = 0.05, 2.0
_BACKLOG: Final = 4


def _path(kind: str, argument: str) -> str:
    if not argument:
        raise ValueError(f"{kind} needs a path: {kind}:PATH")
    if len(os.fsencode(argument)) > _PATH_MAX:
        raise ValueError(f"{kind}: a socket's path has at most {_PATH_MAX} bytes: {argument}")
    return argument


class _Listener(Chardev):
    """Listens, and serves one client after the other; the next one waits in the backlog."""

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled."""
        with self._listen() as listener:
            try:
                task_status.started()
                while True:
                    await self._serve(port, await _accept(listener), listener)
            finally:
                self._clean_up()

    @abstractmethod
    async def _serve(
        self, port: PortSide, client: trio.socket.SocketType, listener: trio.socket.SocketType
    ) -> None:
        """Serve a client until it is gone."""

    @abstractmethod
    def _listen(self) -> trio.socket.SocketType:
        """Make the listening socket; ChardevError."""

    def _clean_up(self) -> None:
        """Remove what `_listen` made."""


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    while True:
        try:
            return (await listener.accept())[0]
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.warning("cannot accept a client: %s", error.strerror)
                await trio.sleep(_RETRY_MAX)  # nothing tells when there is a descriptor again


@frozen
class Unix(_Listener):
    """Listens on a unix socket."""

    path: str
    kind = socket.SOCK_STREAM

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the socket's path."""
        return cls(_path(cls.__name__.lower(), argument))

    async def _serve(
        self, port: PortSide, client: trio.socket.SocketType, listener: trio.socket.SocketType
    ) -> None:
        await join_socket(port, client)

    def _listen(self) -> trio.socket.SocketType:
        listener = trio.socket.socket(socket.AF_UNIX, self.kind)
        try:
            _bind_unix(listener, self.path, self.kind)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener

    def _clean_up(self) -> None:
        with suppress(OSError):
            os.unlink(self.path)


@frozen
class Seqpacket(Unix):
    """Listens on a unix socket of packets: one for each write request of the guest."""

    kind = socket.SOCK_SEQPACKET
    keeps_boundaries = True

    async def _serve(
        self, port: PortSide, client: trio.socket.SocketType, listener: trio.socket.SocketType
    ) -> None:
        large_buffer(client, 2 * MESSAGE_MAX)
        with client:
            port.connect()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_packets, port, client, nursery.cancel_scope)
                    while packet := await _receive_packet(client):
                        await port.send(packet)
                    nursery.cancel_scope.cancel()
            finally:
                port.disconnect()

    async def _send_packets(
        self, port: PortSide, client: trio.socket.SocketType, scope: trio.CancelScope
    ) -> None:
        while True:
            await trio.lowlevel.wait_writable(client)
            packet = await port.receive_message()
            try:
                await client.send(packet)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    scope.cancel()
                    return
                log.warning("%s: a packet of %d bytes is too large", self.path, len(packet))


async def _receive_packet(client: trio.socket.SocketType) -> bytes:
    try:
        return await client.recv(MESSAGE_MAX)
    except OSError:
        return b""


def _bind_unix(listener: trio.socket.SocketType, path: str, kind: int) -> None:
    """Bind, replacing a socket that nobody listens on any more."""
    _replace_stale(path, kind)
    raw = socket.socket(fileno=os.dup(listener.fileno()))  # binding does not wait
    try:
        raw.bind(path)
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        raise ChardevError(f"{path}: the folder {folder} does not exist: make it first") from None
    except OSError as error:
        raise ChardevError(f"{path}: {error.strerror}") from None
    finally:
        raw.close()


def _replace_stale(path: str, kind: int) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or bind will say why not
    if not stat.S_ISSOCK(mode):
        raise ChardevError(f"{path} exists and is no socket: choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code in (0, errno.EAGAIN, errno.EPROTOTYPE):
        raise ChardevError(f"{path} is in use by another program: choose another path")
    if code == errno.ECONNREFUSED:
        with suppress(OSError):
            os.unlink(path)


@frozen
class Tcp(_Listener):
    """Listens on a TCP port."""

    host: str
    service: int

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take HOST:PORT; an IPv6 address stands in brackets."""
        host, colon, service = argument.rpartition(":")
        if not colon or not service.isascii() or not service.isdigit() or int(service) > 65535:
            raise ValueError(f"tcp needs a host and a port: tcp:HOST:PORT, not {argument!r}")
        return cls(host.removeprefix("[").removesuffix("]") or "localhost", int(service))

    async def _serve(
        self, port: PortSide, client: trio.socket.SocketType, listener: trio.socket.SocketType
    ) -> None:
        await join_socket(port, client, successors=listener)

    def _listen(self) -> trio.socket.SocketType:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.service, type=socket.SOCK_STREAM
            )[0]
            raw = socket.socket(family, kind, protocol)
            try:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                raw.bind(address)
                raw.listen(_BACKLOG)
            except BaseException:
                raw.close()
                raise
        except OSError as error:
            where = f"{self.host}:{self.service}"
            raise ChardevError(f"cannot listen on {where}: {error.strerror}") from None
        return trio.socket.from_stdlib_socket(raw)


@frozen
class Connect(Chardev):
    """Connects to a unix socket that another program listens on, again when that goes away."""

    path: str

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the socket's path."""
        return cls(_path("connect", argument))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep connected until cancelled, with longer and longer pauses between tries."""
        task_status.started()
        pause = _RETRY_FIRST
        while True:
            sock = trio.socket.socket(socket.AF_UNIX)
            try:
                await sock.connect(self.path)
            except OSError:
                sock.close()
                await trio.sleep(pause)
                pause = min(2 * pause, _RETRY_MAX)
                continue
            pause = _RETRY_FIRST
            await join_socket(port, sock)

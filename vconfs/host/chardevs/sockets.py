"""Chardevs on unix sockets: unix, seqpacket, connect."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Self

import trio
from attrs import frozen

from vconfs.errors import VconfsError
from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs.client import Client, SocketClient, can_reopen, serve
from vconfs.host.chardevs.leftovers import cannot
from vconfs.host.chardevs.listener import BACKLOG, Door, Listener
from vconfs.host.chardevs.packets import PacketClient
from vconfs.syntax.paths import socket_path
from vconfs.system.backoff import Backoff
from vconfs.system.unix_sockets import closing, connected_to, refuse_rights


@frozen
class Unix(Listener):
    """Listens on a unix socket.

    A client that shuts its sending side down goes on receiving until it closes.
    """

    path: str
    #: Whether clients may send descriptors.
    rights: bool = False
    kind = socket.SOCK_STREAM

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the socket's path."""
        return cls(socket_path(cls.__name__.lower(), argument))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Sequence[socket.socket]]:
        """See `Listener.listening`."""
        with listening_at(self.path, self.kind, rights=self.rights) as listener:
            yield [listener]

    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        return SocketClient(sock)


@frozen
class Seqpacket(Unix):
    """Listens on a unix socket of packets: one for each write request of the guest.

    A packet that does not fit, in either direction, is dropped and counted; the log tells of a
    client's first. Packets of no bytes are ignored.
    """

    kind = socket.SOCK_SEQPACKET
    keeps_boundaries = True

    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        return PacketClient(sock, port)


@contextmanager
def listening_at(
    path: str,
    kind: int = socket.SOCK_STREAM,
    *,
    mode: int | None = None,
    backlog: int = BACKLOG,
    rights: bool = False,
) -> Iterator[socket.socket]:
    """Listen on a unix socket in a block, for those whom `mode` lets in; VconfsError.

    `rights`: they may send descriptors.
    """
    with closing(socket.socket(socket.AF_UNIX, kind)) as listener:
        if not rights:
            refuse_rights(listener)
        if mode is not None:
            os.fchmod(listener.fileno(), mode)  # that of the path, from the moment that it is there
        with _bound(listener, path):
            listener.listen(backlog)
            yield listener


@contextmanager
def _bound(listener: socket.socket, path: str) -> Iterator[None]:
    """Bind, replacing a socket that nobody listens on any more; remove ours at the end."""
    _replace_stale(path, listener.type)
    try:
        listener.bind(path)
        ours = os.lstat(path)
    except OSError as error:
        raise cannot(path, error) from None
    try:
        yield
    finally:
        with suppress(OSError):
            if os.path.samestat(os.lstat(path), ours):  # else it was replaced meanwhile
                os.unlink(path)


def _replace_stale(path: str, kind: int) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or bind will say why not
    if not stat.S_ISSOCK(mode):
        raise VconfsError(f"{path} exists and is no socket: choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code in (0, errno.EAGAIN, errno.EPROTOTYPE):
        raise VconfsError(f"{path} is in use by another program: choose another path")
    if code == errno.ECONNREFUSED:
        with suppress(OSError):
            os.unlink(path)


@frozen
class Connect(Chardev):
    """Connects to a unix socket that another program listens on, again when that goes away.

    The socket may also come later than the port.
    """

    path: str

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the socket's path."""
        return cls(socket_path("connect", argument))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep connected until cancelled, with growing pauses between tries.

        `PortSide.reopen` ends such a pause.
        """
        task_status.started()
        tries = Backoff(f"port {port.id}", f"port {port.id}: connected to {self.path}")
        while True:
            try:
                sock = await connected_to(self.path)
            except OSError as error:
                with can_reopen(port, tries.try_now):
                    await tries.failed(str(cannot(self.path, error)))
                continue
            tries.succeeded()
            with closing(sock):
                await serve(port, SocketClient(sock))
            with can_reopen(port, tries.try_now):
                await tries.wait()

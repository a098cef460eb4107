"""Chardevs on unix sockets: unix, seqpacket, connect."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, Self

import trio
from attrs import frozen

from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs._access import ACCESS_FORMS, file_access
from vconfs.host.chardevs._client import Client, SocketClient, can_reopen, serve
from vconfs.host.chardevs._listener import Listener
from vconfs.host.chardevs._packets import PacketClient
from vconfs.overrides import override
from vconfs.syntax.paths import socket_path
from vconfs.syntax.url_options import split_options
from vconfs.system.backoff import Backoff
from vconfs.system.file_access import OUR_OWN, FileAccess
from vconfs.system.listening import Door, listening_at
from vconfs.system.path_errors import cannot
from vconfs.system.privileges import Capability
from vconfs.system.unix_sockets import closing, connected_to


@frozen
class Unix(Listener):
    """Listens on a unix socket.

    A client that shuts down its sending side goes on receiving until it closes.
    """

    path: str
    #: True if clients may send descriptors.
    rights: bool = False
    #: Who may connect. None leaves that to the umask.
    access: FileAccess | None = OUR_OWN
    options: ClassVar[Sequence[str] | None] = ACCESS_FORMS
    kind = socket.SOCK_STREAM

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the path of the socket."""
        kind = cls.__name__.lower()
        path, options = split_options(kind, argument, *ACCESS_FORMS)
        return cls(socket_path(kind, path), access=file_access(options))

    @override
    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Sequence[socket.socket]]:
        with listening_at(self.path, self.kind, access=self.access, rights=self.rights) as listener:
            yield [listener]

    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        return SocketClient(sock)


@frozen
class Seqpacket(Unix):
    """Listens on a unix socket of packets: one packet for each write request of the guest.

    A packet that is too large, in either direction, is dropped and counted; the first one of each
    client is logged. Empty packets are ignored. The limit is 1 MiB. It can be
    less, by net.core.wmem_max, unless the daemon is root and had such a port from the start.
    """

    kind = socket.SOCK_SEQPACKET
    keeps_boundaries = True
    #: For packets larger than net.core.wmem_max allows.
    capabilities: ClassVar[Collection[int]] = (Capability.NET_ADMIN,)

    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        return PacketClient(sock, port)


@frozen
class Connect(Chardev):
    """Connects to a unix socket that another program listens on, and again when it goes away.

    The socket need not exist yet when the port is added.
    """

    path: str
    options: ClassVar[Sequence[str] | None] = ()

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the path of the socket."""
        path, _ = split_options("connect", argument)
        return cls(socket_path("connect", path))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Stay connected until cancelled, with growing pauses between tries.

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

"""Serving the clients of listening sockets, one after the other."""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import trio

from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs._client import Client, serve
from vconfs.system.listening import Door
from vconfs.system.unix_sockets import closing


class Listener(Chardev):
    """Listens, and serves one client after the other; the next client waits in the backlog."""

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled."""
        async with self.listening() as listeners:
            with Door(listeners) as door:
                task_status.started()
                while True:
                    with closing(await door.accept()) as sock:
                        await serve(port, self._client(port, sock, door))

    @abstractmethod
    def listening(self) -> AbstractAsyncContextManager[Sequence[socket.socket]]:
        """Listen during the block; raise VconfsError if that is not possible."""

    @abstractmethod
    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        """Return a client for an accepted socket."""

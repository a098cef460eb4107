"""Serving the clients of listening sockets, one after the other."""

from __future__ import annotations

import select
import socket
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Self

import trio

from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs.client import Client, serve
from vconfs.system.backoff import Backoff, is_passing
from vconfs.system.unix_sockets import closing

#: How many clients may wait while one is served.
BACKLOG: Final = 4


class Door:
    """Listening sockets, as one."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        self._waiting = select.epoll()
        for listener in listeners:
            listener.setblocking(False)
            self._waiting.register(listener.fileno(), select.EPOLLIN)
        self._tries = Backoff("clients have to wait", "clients are let in again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._waiting.close()

    def fileno(self) -> int:
        """Give a descriptor that is readable while a client waits."""
        return self._waiting.fileno()

    async def accept(self) -> trio.socket.SocketType:
        """Wait for a client and let it in."""
        while True:
            await trio.lowlevel.wait_readable(self)
            for listener in self._listeners:
                try:
                    client = trio.socket.from_stdlib_socket(listener.accept()[0])
                except BlockingIOError:  # it has come to another listener, or has left again
                    continue
                except OSError as error:
                    if is_passing(error):
                        await self._tries.failed(error)
                else:
                    self._tries.succeeded()
                    return client


class Listener(Chardev):
    """Listens, and serves one client after the other; the next one waits in the backlog."""

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
        """Listen in a block; VconfsError."""

    @abstractmethod
    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        """Make the client of an accepted socket."""

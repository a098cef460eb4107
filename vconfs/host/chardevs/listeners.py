"""Serving the clients of listening sockets, one after the other."""

from __future__ import annotations

import errno
import logging
import select
import socket
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Self

import trio

from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs.join import Client, serve

log = logging.getLogger(__name__)

#: How many clients may wait while one is served.
BACKLOG: Final = 4
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_ROOM_PAUSE: Final = 2.0


class Door:
    """Listening sockets, as one."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        self._waiting = select.epoll()
        for listener in listeners:
            listener.setblocking(False)
            self._waiting.register(listener.fileno(), select.EPOLLIN)
        self._warned = False

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
                    return trio.socket.from_stdlib_socket(listener.accept()[0])
                except OSError as error:  # most often: it had left again
                    if error.errno in _NO_ROOM:
                        await self._no_room(error)

    async def _no_room(self, error: OSError) -> None:
        if not self._warned:
            log.warning("clients have to wait: %s", error.strerror)
            self._warned = True
        await trio.sleep(_NO_ROOM_PAUSE)  # nothing tells when there is a descriptor again


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
                    with await door.accept() as sock:
                        await serve(port, self._client(port, sock, door))

    @abstractmethod
    def listening(self) -> AbstractAsyncContextManager[Sequence[socket.socket]]:
        """Listen in a block; ChardevError."""

    @abstractmethod
    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        """Make the client of an accepted socket."""

"""Serving the clients of listening sockets, one after the other."""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final

import trio

from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs._client import Client, serve
from vconfs.system.listening import Door
from vconfs.system.tasks import open_background
from vconfs.system.unix_sockets import closing

#: Seconds that a further client of a console waits for the first to leave.
_GRACE: Final = 0.1


class Listener(Chardev):
    """Listens, and serves one client after the other; the next client waits in the backlog.

    A person does not wait so: a further client of a console is told that it is in use, and hung up.
    """

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled."""
        async with self.listening() as listeners:
            with Door(listeners) as door:
                task_status.started()
                while True:
                    with closing(await door.accept()) as sock:
                        client = self._client(port, sock, door)
                        if port.console:
                            await _serve_alone(port, client, door)
                        else:
                            await serve(port, client)

    @abstractmethod
    def listening(self) -> AbstractAsyncContextManager[Sequence[socket.socket]]:
        """Listen during the block; raise VconfsError if that is not possible."""

    @abstractmethod
    def _client(self, port: PortSide, sock: trio.socket.SocketType, door: Door) -> Client:
        """Return a client for an accepted socket."""


async def _serve_alone(port: PortSide, client: Client, door: Door) -> None:
    async with open_background() as nursery:
        nursery.start_soon(_turn_away, port, door)
        await serve(port, client)


async def _turn_away(port: PortSide, door: Door) -> None:
    """Tell each further client that the console is in use, and hang it up.

    One that comes just as the first leaves, as at a reconnect, stays in the backlog.
    """
    while True:
        await door.wait()
        await trio.sleep(_GRACE)
        with closing(await door.accept()) as sock, suppress(OSError):
            await sock.send(b"vconfs: the console of port %d is in use\r\n" % port.id)

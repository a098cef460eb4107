"""A server of doorbells, as QEMU's ivshmem-server is one."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import trio

from tests.qemu.listener import listener
from vconfs.protocol.ivshmem import MESSAGE
from vconfs.system.tasks import open_background


class DoorbellServer:
    """Tells all that connect to it each other's doorbells."""

    def __init__(self, path: Path, vectors: int, stack: ExitStack) -> None:
        self._stack = stack
        self._vectors = vectors
        self._peers: dict[int, tuple[socket.socket, list[int]]] = {}
        self._memory = os.memfd_create("ivshmem")
        os.ftruncate(self._memory, 4096)
        stack.callback(os.close, self._memory)
        self._listener = trio.socket.from_stdlib_socket(stack.enter_context(listener(path)))

    async def run(self) -> None:
        peer = 0
        while True:
            accepted, _ = await self._listener.accept()
            sock = socket.fromfd(accepted.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
            accepted.close()
            self._stack.callback(sock.close)
            self.greet(peer, sock)
            peer += 1

    def greet(self, peer: int, sock: socket.socket) -> None:
        doorbells = [os.eventfd(0) for _ in range(self._vectors)]
        for doorbell in doorbells:
            self._stack.callback(os.close, doorbell)
        tell(sock, 0)
        tell(sock, peer)
        tell(sock, -1, self._memory)
        for other, (other_sock, others) in self._peers.items():
            for doorbell in others:
                tell(sock, other, doorbell)
            for doorbell in doorbells:
                tell(other_sock, peer, doorbell)
        self._peers[peer] = sock, doorbells
        for doorbell in doorbells:
            tell(sock, peer, doorbell)


def tell(sock: socket.socket, value: int, descriptor: int | None = None) -> None:
    """Send one message; a peer that has left is not told."""
    descriptors = [] if descriptor is None else [descriptor]
    with suppress(BrokenPipeError, ConnectionResetError):
        socket.send_fds(sock, [MESSAGE.pack(value)], descriptors)


@asynccontextmanager
async def serving_doorbells(path: Path, vectors: int) -> AsyncIterator[None]:
    """Serve doorbells, `vectors` for each peer, while the block runs."""
    with ExitStack() as stack:
        server = DoorbellServer(path, vectors, stack)
        async with open_background() as nursery:
            nursery.start_soon(server.run)
            yield

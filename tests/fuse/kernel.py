"""The kernel's side of the FUSE protocol, scripted: a SOCK_SEQPACKET pair instead of /dev/fuse.

It packs requests and unpacks replies with layouts of its own, copied from linux/fuse.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pyfuse3
import trio
import trio.testing
from attrs import define, field, frozen

from vconfs.fuse import Session

LOOKUP, FORGET, GETATTR, OPEN, READ, WRITE, RELEASE = 1, 2, 3, 14, 15, 16, 18
INIT, INTERRUPT, POLL = 26, 36, 40


@frozen
class Reply:
    """`error` is a positive errno; `unique` 0: a notification, with its code in `error`."""

    unique: int
    error: int
    body: bytes


@define
class Kernel:
    """The test's end of the device: it sends requests to the session, and reads the replies."""

    socket: trio.socket.SocketType
    session: Session
    started: trio.Event = field(factory=trio.Event)
    _unique: int = 0

    async def send(self, opcode: int, body: bytes = b"", *, node: int = 1, unique: int = 0) -> int:
        """Send a request; give its number."""
        if not unique:
            self._unique += 2
            unique = self._unique
        head = struct.pack("<IIQQIIII", 40 + len(body), opcode, unique, node, 10, 20, 30, 0)
        await self.send_bytes(head + body)
        return unique

    async def send_bytes(self, packet: bytes) -> None:
        await self.socket.send(packet)

    async def receive(self) -> Reply:
        packet = await self.socket.recv(2 << 20)
        size, error, unique = struct.unpack_from("<IiQ", packet)
        assert size == len(packet)
        return Reply(unique, -error if unique else error, packet[16:])

    async def ask(self, opcode: int, body: bytes = b"", *, node: int = 1) -> Reply:
        """Send a request and get its reply, which must be the next one."""
        unique = await self.send(opcode, body, node=node)
        reply = await self.receive()
        assert reply.unique == unique
        return reply

    async def interrupt(self, unique: int) -> None:
        await self.send(INTERRUPT, struct.pack("<Q", unique), unique=unique | 1)

    async def assert_silent(self) -> None:
        """Nothing was sent, and nothing is about to be."""
        await trio.testing.wait_all_tasks_blocked()
        try:
            packet = self.socket._sock.recv(1 << 16, socket.MSG_DONTWAIT)  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        raise AssertionError(f"unexpected: {packet!r}")


def read_body(fh: int = 1, offset: int = 0, size: int = 4096, flags: int = 0) -> bytes:
    return struct.pack("<QQIIQII", fh, offset, size, 0, 0, flags, 0)


def write_body(data: bytes, fh: int = 1, offset: int = 0, flags: int = 0) -> bytes:
    return read_body(fh, offset, len(data), flags) + data


def init_body(minor: int = 40, flags: int = 0xFFFFFFFF) -> bytes:
    return struct.pack("<IIII", 7, minor, 131072, flags) + bytes(48)


@asynccontextmanager
async def connect(operations: Any) -> AsyncIterator[Kernel]:
    """Run a session whose kernel is the test; it has not said INIT yet."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    with ours, theirs:
        theirs.setblocking(False)
        session = Session(operations, theirs.fileno())
        kernel = Kernel(trio.socket.from_stdlib_socket(ours), session)

        async def run() -> None:
            async with trio.open_nursery() as inner:
                await inner.start(session.run)
                kernel.started.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield kernel
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(operations: Any) -> AsyncIterator[Kernel]:
    """The same, with INIT behind it."""
    async with connect(operations) as kernel:
        reply = await kernel.ask(INIT, init_body())
        assert not reply.error
        yield kernel


class Quiet(pyfuse3.Operations):
    """Operations whose reads and writes do what a test tells them to."""

    prompt = frozenset({"open", "release", "lookup"})

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Any] = []
        self.data = b""
        self.changed = trio.Event()

    def read_nowait(self, fh: int, size: int, flags: int) -> Any:
        if not self.data:
            raise trio.WouldBlock
        data, self.data = self.data[:size], self.data[size:]
        return data

    def write_nowait(self, fh: int, data: memoryview, flags: int) -> int:
        self.log.append(bytes(data))
        return len(data)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self.log.append("read waits")
        await self.changed.wait()
        return self.data[:size]

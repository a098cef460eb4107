"""A front-end of vhost-user by hand: the test says each message, and plays the guest's driver."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.support.full_frontend import FullFrontend
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPortSpec
from vconfs.host.vhost_user.front_ends import serve_vhost_user
from vconfs.link.vhost_user_messages import MessageSocket
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.vhost_user import Message, Outgoing, Region, Reply
from vconfs.protocol.virtqueue import DriverQueue, Layout
from vconfs.system.tasks import open_background

SIZE = 1 << 20
GUEST, USER = 0x1000_0000, 0x7F00_0000_0000
REGION = Region(GUEST, SIZE, USER)
RING_SIZE = 8
SLOT = 4096
#: Without in-band notifications.
PROTOCOL = vu.PF_MQ | vu.PF_REPLY_ACK | vu.PF_BACKEND_REQ | vu.PF_CONFIG | vu.PF_CONFIGURE_MEM_SLOTS
V8 = 1 << 32 | 1 << 23 | 1 << 1 | 1 << 0
NEED_REPLY = 8


class FrontEnd:
    """One connection, with memory for `queues` rings; `close` it."""

    def __init__(self, sock: trio.socket.SocketType, queues: int = 2) -> None:
        self.sock = sock
        self.messages = MessageSocket(sock)
        self.codec = FullFrontend(queues)
        self.memfd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memfd, SIZE)
        self.memory = memoryview(mmap.mmap(self.memfd, SIZE))
        self.rings: dict[int, DriverQueue] = {}
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(queues)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(queues)]
        self.channel: MessageSocket | None = None
        self._channel_sock: trio.socket.SocketType | None = None

    def close(self) -> None:
        self.rings.clear()
        self.memory = memoryview(b"")
        self.sock.close()
        if self._channel_sock is not None:
            self._channel_sock.close()
        for fd in (self.memfd, *self.kicks, *self.calls):
            os.close(fd)

    # --- messages -------------------------------------------------------------------------

    async def ask(self, sent: Outgoing) -> Reply | None:
        """Send a request of the codec's, and give its reply if there is one."""
        await self.messages.send(sent.data, sent.fds)
        if not sent.answered:
            return None
        message = await self.messages.receive()
        assert message is not None, "the back-end ended the connection"
        return self.codec.receive(message)

    async def say(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 1
    ) -> None:
        """Send any message."""
        data = struct.pack("=III", request, flags, len(payload)) + payload
        await self.messages.send(data, fds)

    async def reply(self) -> Message | None:
        """Return the next message, or None if the connection was ended."""
        try:
            return await self.messages.receive()
        except ConnectionResetError:
            return None

    async def ended(self) -> bool:
        """True if the connection ends next."""
        return await self.reply() is None

    # --- set-up ---------------------------------------------------------------------------

    async def negotiate(self, protocol: int = PROTOCOL, features: int = V8) -> None:
        await self.ask(self.codec.set_owner())
        await self.ask(self.codec.get_features())
        await self.ask(self.codec.get_protocol_features())
        await self.ask(self.codec.set_protocol_features(protocol))
        await self.ask(self.codec.set_features(features | vu.F_PROTOCOL_FEATURES))

    async def open_channel(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        if self._channel_sock is not None:
            self._channel_sock.close()
        self._channel_sock = trio.socket.from_stdlib_socket(ours)
        self.channel = MessageSocket(self._channel_sock)
        with theirs:
            await self.ask(self.codec.set_backend_req_fd(theirs.fileno()))

    async def share(self) -> None:
        await self.ask(self.codec.set_mem_table([REGION], [self.memfd]))

    async def set_ring(self, index: int, base: int = 0) -> None:
        """Set a ring up, with a fresh queue in the memory if it begins at 0."""
        layout = Layout.at(RING_SIZE, index * 4096)
        if not base:
            self.memory[layout.desc : layout.end] = bytes(layout.end - layout.desc)
            self.rings[index] = DriverQueue(self.memory, layout, base=GUEST)
        at = Layout(RING_SIZE, USER + layout.desc, USER + layout.avail, USER + layout.used)
        await self.ask(self.codec.set_vring_num(index, RING_SIZE))
        await self.ask(self.codec.set_vring_base(index, base))
        await self.ask(self.codec.set_vring_addr(index, at))

    async def start_ring(self, index: int, base: int = 0) -> None:
        await self.set_ring(index, base)
        await self.ask(self.codec.set_vring_call(index, self.calls[index]))
        await self.ask(self.codec.set_vring_kick(index, self.kicks[index]))
        await self.ask(self.codec.set_vring_enable(index, True))

    async def start(self, queues: Iterable[int] = (0, 1), **options: int) -> None:
        """Set everything up, with empty buffers in the even queues."""
        await self.negotiate(**options)
        await self.open_channel()
        await self.share()
        for index in queues:
            await self.start_ring(index)
            if not index % 2:
                for slot in range(RING_SIZE):
                    self.offer(index, slot)
                self.publish(index)

    # --- the guest's driver ---------------------------------------------------------------

    def _slot(self, index: int, slot: int) -> int:
        return SIZE // 2 + (index * RING_SIZE + slot) * SLOT

    def offer(self, index: int, slot: int) -> None:
        """Lend an empty buffer."""
        self.rings[index].add(self._slot(index, slot), SLOT, writable=True)

    def put(self, index: int, data: bytes, slot: int = 0) -> None:
        """Send a buffer."""
        if self.put_quietly(index, data, slot):
            os.eventfd_write(self.kicks[index], 1)

    def put_quietly(self, index: int, data: bytes, slot: int = 0) -> bool:
        """Send a buffer without a notification. Return True if one was wanted."""
        at = self._slot(index, slot)
        self.memory[at : at + len(data)] = data
        self.rings[index].add(at, len(data), writable=False)
        return self.rings[index].publish()

    def publish(self, index: int) -> None:
        if self.rings[index].publish():
            os.eventfd_write(self.kicks[index], 1)

    async def used(self, index: int) -> bytes:
        """Wait for a buffer to come back, and give what was written into it, in order of use."""
        ring = self.rings[index]
        while (found := ring.pop_used()) is None:
            await self.called(index)
        head, written = found
        slot = struct.unpack_from("<Q", ring._desc, 16 * head)[0] - GUEST
        return bytes(self.memory[slot : slot + written])

    async def called(self, index: int) -> None:
        await trio.lowlevel.wait_readable(self.calls[index])
        os.eventfd_read(self.calls[index])


@asynccontextmanager
async def open_back_end(
    path: Path, specs: Sequence[HostPortSpec], *, dialect: str | None = None, options: str = ""
) -> AsyncIterator[Host]:
    """Run a host end that listens for front-ends at `path`."""
    async with open_host(specs) as host, open_background() as nursery:
        await nursery.start(serve_vhost_user, host, f"{path}{options}", dialect)
        yield host


@asynccontextmanager
async def open_front_end(path: Path, queues: int = 2) -> AsyncIterator[FrontEnd]:
    """Connect to a back-end."""
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.connect(str(path))
        front = FrontEnd(sock, queues)
        try:
            yield front
        finally:
            front.close()


def is_sealed(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)

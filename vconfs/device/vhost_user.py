"""A vhost-user back-end as the device: vconfs is its front-end, and the guest's driver as well.

The shared memory holds only the rings and their buffers. It is a sealed memfd, so that the back-end
can rely on its size. When the back-end leaves, its socket reports the end; nothing else comes there
unasked.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Final

import trio

from vconfs.device._device_memory import DeviceMemory
from vconfs.device._queue_shapes import queue_specs
from vconfs.device._remote_backend import RemoteBackend
from vconfs.device._rings import RingLink
from vconfs.device._slots import memory_for, set_up_queues
from vconfs.errors import PeerAbsentError, VconfsError
from vconfs.link.link import OpenDevice, leave_soon
from vconfs.link.notifications import Bell, Notices
from vconfs.link.vhost_user_messages import MessageSocket
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import ConfigStale, Region
from vconfs.protocol.virtqueue import F_EVENT_IDX, Layout
from vconfs.syntax.paths import socket_path
from vconfs.syntax.url_options import split_options
from vconfs.system.aside import close_descriptors
from vconfs.system.descriptors import owned
from vconfs.system.edges import Watch
from vconfs.system.tasks import open_background
from vconfs.system.unix_sockets import close_socket, connected_to, refuse_rights

#: The address of our memory, in both kinds of addresses.
_BASE: Final = 1 << 32
#: The key of the notice that is not about a queue; the others have the queue's number.
_BROKEN: Final = -1


def parse_path(rest: str) -> str:
    """Parse the url after the scheme; raise ValueError if it is wrong."""
    path, _ = split_options("vhost-user", rest)
    return socket_path("vhost-user", path)


@asynccontextmanager
async def open_vhost_user(rest: str, dialect: str | None) -> AsyncIterator[OpenDevice]:
    """Connect to the back-end that listens at `rest`, as its front-end.

    Raise ValueError if `rest` is wrong, VconfsError if the back-end cannot be used.
    """
    path = parse_path(rest)
    try:
        sock = await connected_to(path)
    except OSError as error:
        raise PeerAbsentError(f"cannot connect to {path}: {error.strerror}") from None
    with ExitStack() as stack:
        stack.callback(close_socket, sock)
        try:
            back_end = RemoteBackend(sock)
            stack.callback(back_end.release)
            end = await back_end.negotiate(dialect)
            running = _Running(back_end, stack)
            await running.set_up(sock.fileno())
        except RemoteProtocolError as error:
            raise VconfsError(str(error)) from None
        try:
            async with open_background() as nursery:
                nursery.start_soon(running.notices.run)
                nursery.start_soon(running.watch_end)
                nursery.start_soon(running.serve_channel)
                yield running.link, end
        finally:
            await leave_soon(running.link)
            running.link.owner.left()


class _Running:
    """A back-end after the negotiation: the link over its rings, and the handling of its notices.

    `stack` closes all that it opens.
    """

    def __init__(self, back_end: RemoteBackend, stack: ExitStack) -> None:
        self._back_end = back_end
        self._stack = stack
        self._specs = queue_specs(back_end.queues)
        self._size = memory_for(self._specs.values())
        self._memory = stack.enter_context(owned(_sealed_memory(self._size)))
        self._asking = trio.Lock()  # one task at a time can ask the back-end
        self.notices: Notices[int] = Notices(self._told)
        self._bells: dict[int, Bell] = {}
        self._channel: MessageSocket
        self._end: Watch
        self.link: RingLink

    def _eventfd(self) -> int:
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._stack.enter_context(owned(event))

    async def set_up(self, sock: int) -> None:
        """Lay out the rings, share them and start them; `sock` is the socket to the back-end."""
        self.link = await self._lay_out()
        self._stack.callback(self.link.close)
        self._end = self._stack.enter_context(Watch({sock: select.EPOLLRDHUP}))
        ours, theirs = socket.socketpair()
        refuse_rights(ours)
        self._channel = MessageSocket(
            self._stack.enter_context(trio.socket.from_stdlib_socket(ours))
        )
        self._stack.callback(self._channel.release)
        with theirs:
            await self._back_end.give_channel(theirs.fileno())
        region = Region(_BASE, self._size, _BASE)
        await self._back_end.share(region, self._memory)
        broken = self._notice(_BROKEN)
        for queue in self._specs:
            at = self.link.layout(queue)
            layout = Layout(at.size, _BASE + at.desc, _BASE + at.avail, _BASE + at.used)
            kick, call = self._eventfd(), self._notice(queue)
            self._bells[queue] = Bell(kick)
            await self._back_end.start_ring(queue, layout, kick, call, broken)

    async def _lay_out(self) -> RingLink:
        back_end, memory = self._back_end, memoryview(mmap.mmap(self._memory, self._size))
        event_idx = bool(back_end.features & F_EVENT_IDX)
        return RingLink(
            await set_up_queues(DeviceMemory.at(memory, _BASE), self._specs, event_idx=event_idx),
            features=back_end.features,
            kick=lambda queue: self._bells[queue].ring(),
            read_config=lambda: back_end.config,
            stop_device=self._stop,
            device_beside=True,
        )

    def _notice(self, key: int) -> int:
        """Return a descriptor by which the back-end notifies us."""
        event = self._eventfd()
        self.notices.add(event, key)
        return event

    def _told(self, key: int) -> None:
        if key == _BROKEN:
            self.link.fail("the back-end cannot go on")
        else:
            self.link.interrupt_used((key,))

    async def watch_end(self) -> None:
        """Wait until the back-end has left."""
        await self._end.wait()
        self.link.interrupt_used(self._specs)  # the last buffers that it used
        self.link.fail("the back-end has left")

    async def serve_channel(self) -> None:
        """Answer the back-end's requests."""
        try:
            while (message := await self._channel.receive()) is not None:
                close_descriptors(message.fds)
                asked = self._back_end.receive_request(message)
                if asked.reply:  # at once: the back-end may wait for it before it answers
                    await self._channel.send(asked.reply)
                if isinstance(asked.event, ConfigStale):
                    async with self._asking:
                        await self._back_end.read_config()
                    self.link.config_interrupt()
        except (VconfsError, RemoteProtocolError) as error:
            self.link.fail(str(error))
        except OSError as error:
            self.link.fail(f"the connection broke: {error.strerror}")

    async def _stop(self, patience: float) -> None:
        """Stop all rings, after which the back-end has taken all that was sent."""
        with suppress(VconfsError, RemoteProtocolError, trio.TooSlowError):
            for queue in self._specs:
                async with self._asking:
                    with trio.fail_after(patience):
                        await self._back_end.stop_ring(queue)


def _sealed_memory(size: int) -> int:
    memory = os.memfd_create("vconfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, size)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    return memory

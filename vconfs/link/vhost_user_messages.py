"""vhost-user messages, which can carry descriptors, over a unix socket."""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from typing import Final

import trio

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import FDS_MAX, Message, Parser
from vconfs.system.aside import ASIDE, close_descriptors
from vconfs.system.queue_sizes import bytes_to_send
from vconfs.system.unix_sockets import descriptors_in

_INT: Final = array.array("i").itemsize
#: Space for more descriptors than a message may have, so that too many are noticed.
_ANCILLARY_SPACE: Final = socket.CMSG_SPACE(2 * FDS_MAX * _INT)


class MessageSocket:
    """A vhost-user socket. The caller closes the socket itself, after `release`."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._parser = Parser()

    async def receive(self) -> Message | None:
        """Wait for a message, whose descriptors then belong to the caller.

        Return None if the peer has left. Raise RemoteProtocolError if what came is not a message,
        OSError if the socket broke.
        """
        while (message := self._parser.next_message()) is None:
            if ASIDE.is_full:
                raise RemoteProtocolError("too many descriptors cannot be closed")
            data, ancillary, flags, _ = await self._sock.recvmsg(
                self._parser.wanted, _ANCILLARY_SPACE, socket.MSG_CMSG_CLOEXEC
            )
            self._parser.feed(data, descriptors_in(ancillary))
            if flags & socket.MSG_CTRUNC:
                raise RemoteProtocolError("descriptors were lost on the way: there were too many")
            if not data:
                if self._parser.ends_inside:
                    raise RemoteProtocolError("the peer left in the middle of a message")
                return None
        return message

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a message; its descriptors stay the caller's. Raise OSError if the socket broke."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = await self._sock.sendmsg([data], rights)
        while sent < len(data):
            sent += await self._sock.send(data[sent:])

    def unread(self) -> int:
        """Return how many sent bytes the peer has not read, and their overhead."""
        return bytes_to_send(self._sock.fileno())

    def release(self) -> None:
        """Close the descriptors of messages that were only received in part."""
        close_descriptors(self._parser.release())

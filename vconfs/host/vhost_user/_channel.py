"""Our own requests to a front-end, on the socket that it has sent us for them.

We neither ask nor wait for answers: if a front-end waited for us while we waited for it, both
would hang (user-mode Linux waits in that way while its guest spins on a console's output).
"""

from __future__ import annotations

import socket
from contextlib import suppress

import trio

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import Outgoing
from vconfs.system.aside import close_descriptors, is_unix_socket
from vconfs.system.unix_sockets import close_unread, refuse_rights

_NO_WAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class FrontendChannel:
    """The socket, if there is one, and the requests that it has not taken yet."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        #: Requests that wait, each once: they all only say "look", so repeating one adds nothing.
        self._waiting: dict[bytes, None] = {}
        self._full = trio.Event()

    def open(self, fd: int) -> None:
        """Use another socket, and own it; raise RemoteProtocolError if it is not a unix socket."""
        self.close()
        if not is_unix_socket(fd):
            close_descriptors([fd])
            raise RemoteProtocolError("the descriptor for our requests is not a unix socket")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)
        refuse_rights(self._sock)  # because we never read it

    def close(self) -> None:
        """Close the socket, and send nothing more."""
        self._waiting.clear()
        if self._sock is not None:
            trio.lowlevel.notify_closing(self._sock)
            close_unread(self._sock)
            self._sock = None

    def post(self, request: Outgoing | None) -> None:
        """Send a request, now or as soon as there is room; do nothing if it is None."""
        if request is not None and self._sock is not None:
            self._waiting[request.data] = None
            self._send_waiting(self._sock)

    async def run(self) -> None:
        """Send requests that wait for room, until cancelled."""
        while True:
            await self._full.wait()
            self._full = trio.Event()
            if self._sock is not None:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._sock)
            if self._sock is not None:
                self._send_waiting(self._sock)

    def _send_waiting(self, sock: socket.socket) -> None:
        while self._waiting:
            data = next(iter(self._waiting))
            try:
                sent = sock.send(data, _NO_WAIT)
            except BlockingIOError:
                self._full.set()
                return
            except OSError:  # the front-end takes no more requests
                self.close()
                return
            del self._waiting[data]
            if sent < len(data):
                self._waiting = {data[sent:]: None, **self._waiting}

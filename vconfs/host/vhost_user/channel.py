"""Our own requests to a front-end, on the socket that it has given us for them.

No answers are asked for, and none are waited for: a front-end that waits for us while we wait for
it would hang both (user-mode Linux does while its guest spins on a console's output).
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
    """The socket, when there is one, and what it has not taken yet."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        #: Requests that wait, each once: all that there are mean "look", however often said.
        self._waiting: dict[bytes, None] = {}
        self._full = trio.Event()

    def open(self, fd: int) -> None:
        """Use another socket, and close it in the end; RemoteProtocolError: it is none."""
        self.close()
        if not is_unix_socket(fd):
            close_descriptors([fd])
            raise RemoteProtocolError("the descriptor for our requests is no unix socket")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)
        refuse_rights(self._sock)  # it is not read

    def close(self) -> None:
        """Use no socket any more."""
        self._waiting.clear()
        if self._sock is not None:
            trio.lowlevel.notify_closing(self._sock)
            close_unread(self._sock)
            self._sock = None

    def post(self, request: Outgoing | None) -> None:
        """Send a request, now or as soon as there is room; None: there is nothing to send."""
        if request is not None and self._sock is not None:
            self._waiting[request.data] = None
            self._send_waiting(self._sock)

    async def run(self) -> None:
        """Send what has to wait for room."""
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
            except OSError:  # the front-end wants no requests any more
                self.close()
                return
            del self._waiting[data]
            if sent < len(data):
                self._waiting = {data[sent:]: None, **self._waiting}

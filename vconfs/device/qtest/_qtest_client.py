"""A client of QEMU's qtest protocol: it sends commands in order, and watches interrupt lines."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from vconfs.errors import VconfsError
from vconfs.protocol import qtest
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.lines import LineReader
from vconfs.system.unix_sockets import refuse_rights

#: Seconds that QEMU may take to answer, and the most bytes of commands that may wait for it.
_ANSWER_SECONDS: Final = 5.0
_BACKLOG_MAX: Final = 1 << 20
_RECEIVE_SIZE: Final = 1 << 16


def connect(path: Path, *, rights: bool = False) -> socket.socket:
    """Connect to a unix socket, without waiting. Raise VconfsError if that fails.

    Descriptors are accepted only if `rights` is true.
    """
    sock = socket.socket(socket.AF_UNIX)
    if not rights:
        refuse_rights(sock)
    sock.setblocking(False)
    try:
        sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise VconfsError(f"cannot connect to {path}: {error.strerror}") from None
    return sock


class _Pending:
    """A command whose answer is awaited."""

    __slots__ = ("answer", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.answer: int | VconfsError | None = None


class QtestClient:
    """Sends commands to QEMU, in order, and keeps track of its interrupt lines."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._out = bytearray()
        self._stuck = trio.lowlevel.ParkingLot()
        self._pending: deque[_Pending | None] = deque()
        self._interrupt = trio.Event()
        self._lost: str = ""
        #: Called when QEMU is lost.
        self.on_lost: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Receive and send, until QEMU is lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_backlog)
            await self._receive_all()
            nursery.cancel_scope.cancel()

    def post(self, command: bytes) -> None:
        """Send a command, and do not wait for its answer."""
        self._put(command, None)

    async def call(self, command: bytes) -> int:
        """Send a command, and return its answer."""
        pending = _Pending()
        self._put(command, pending)
        with trio.move_on_after(_ANSWER_SECONDS):
            await pending.event.wait()
        if isinstance(pending.answer, int):
            return pending.answer
        raise pending.answer or VconfsError(f"QEMU has not answered in {_ANSWER_SECONDS:g} s")

    async def wait_interrupt(self) -> None:
        """Wait until a line was raised since the last call."""
        if not self._lost:
            await self._interrupt.wait()
        self.check()
        self._interrupt = trio.Event()

    def check(self) -> None:
        """Raise VconfsError if QEMU is gone."""
        if self._lost:
            raise VconfsError(self._lost)

    def _put(self, command: bytes, pending: _Pending | None) -> None:
        if self._lost:
            _settle(pending, VconfsError(self._lost))
            return
        self._pending.append(pending)
        self._out += command
        if len(self._out) == len(command):
            self._send_some()
        elif len(self._out) > _BACKLOG_MAX:
            self._lose("QEMU takes no commands")

    def _send_some(self) -> None:
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(f"QEMU is gone: {error.strerror}")
            return
        del self._out[:sent]
        if self._out:
            self._stuck.unpark_all()

    async def _send_backlog(self) -> None:
        while not self._lost:
            if not self._out:
                await self._stuck.park()
            await trio.lowlevel.wait_writable(self._socket)
            self._send_some()

    async def _receive_all(self) -> None:
        reader = LineReader(qtest.LINE_MAX)
        while not self._lost:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(_RECEIVE_SIZE)
                if not data:
                    self._lose("QEMU is gone")
                    break
                for line in reader.feed(data):
                    self._handle(qtest.parse_line(line))
            except BlockingIOError:
                continue
            except OSError as error:
                self._lose(f"QEMU is gone: {error.strerror}")
            except RemoteProtocolError as error:
                self._lose(str(error))

    def _handle(self, event: qtest.QtestEvent) -> None:
        if isinstance(event, qtest.Interrupt):
            if event.raised:
                self._interrupt.set()
            return
        if not self._pending:
            raise RemoteProtocolError("an answer to no command")
        pending = self._pending.popleft()
        if isinstance(event, qtest.Answer):
            _settle(pending, event.value)
        else:
            _settle(pending, VconfsError(f"QEMU refuses a command: {event.reason}"))

    def _lose(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._out.clear()
        for pending in self._pending:
            _settle(pending, VconfsError(reason))
        self._pending.clear()
        self._interrupt.set()
        self.on_lost()


def _settle(pending: _Pending | None, answer: int | VconfsError) -> None:
    if pending is not None:
        pending.answer = answer
        pending.event.set()

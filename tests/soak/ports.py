"""One port of a soak: a program at its file and a client at its socket, which come and go."""

from __future__ import annotations

import errno
import os
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio

from tests.faults.traffic import Track
from tests.support.threads import in_thread

_PIECES = (1, 30, 100, 4096, 20_000, 65_536, 200_000)
#: Names of tracks are bytes below the mark.
_NAMES = 250
#: Seconds for what is left in a socket that its client leaves.
_LEAVING = 5


class Flow:
    """One direction: what was accepted from the sender, and the track that checks what comes."""

    def __init__(self, serial: int, *, upward: bool) -> None:
        self.track = Track(serial % _NAMES, upward)
        self.accepted = 0

    @property
    def missing(self) -> int:
        return self.accepted - self.track.received


class Pace:
    """The mood of a device's users: they write and leave at random, or in calm only read."""

    def __init__(self, numbers: random.Random) -> None:
        self.numbers = numbers
        self.writing = trio.Event()
        self.opens = 0
        self._scopes: set[trio.CancelScope] = set()

    @property
    def is_calm(self) -> bool:
        return not self.writing.is_set()

    def calm_down(self) -> None:
        """Let all write to the end what they are writing, and stay."""
        self.writing = trio.Event()
        for scope in self._scopes:
            scope.deadline = float("inf")

    def go_on(self) -> None:
        for scope in self._scopes:
            scope.deadline = self._end()
        self.writing.set()

    def _end(self) -> float:
        return trio.current_time() + self.numbers.expovariate(1 / 2)

    async def stay(self, use: Callable[[], Awaitable[None]]) -> None:
        """Run `use` for a random time."""
        self.opens += 1
        with trio.CancelScope() as scope:
            if not self.is_calm:
                scope.deadline = self._end()
            self._scopes.add(scope)
            try:
                await use()
            finally:
                self._scopes.discard(scope)

    async def pause(self) -> None:
        await trio.sleep(0.02 if self.is_calm else self.numbers.expovariate(1 / 0.1))


class Side(ABC):
    """A user of one side of a port, who opens it, writes and reads, and leaves it again."""

    def __init__(self, pace: Pace, sends: Flow, receives: Flow) -> None:
        self.pace, self.sends, self.receives = pace, sends, receives

    async def run(self) -> None:
        while True:
            await self.pace.pause()
            with suppress(OSError):
                await self.open()
                try:
                    await self.pace.stay(self._use)
                finally:
                    with trio.CancelScope(shield=True):
                        await self.close()

    async def _use(self) -> None:
        """Write and read until one of them is impossible."""
        self.receives.track.resume()

        async def until_broken(work: Callable[[], Awaitable[None]]) -> None:
            with suppress(OSError):
                await work()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_broken, self._write)
            nursery.start_soon(until_broken, self._read)

    async def _write(self) -> None:
        numbers, flow = self.pace.numbers, self.sends
        data = flow.track.begin()
        while True:
            while data:
                taken = await self.write(data)
                flow.accepted += taken
                data = data[taken:]
            await trio.sleep(numbers.expovariate(1 / 0.03))
            await self.pace.writing.wait()
            data = flow.track.more(numbers.choice(_PIECES))

    async def _read(self) -> None:
        while (data := await self.read(self.pace.numbers.choice(_PIECES))) is not None:
            self.receives.track.take(data)

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def write(self, data: bytes) -> int: ...

    @abstractmethod
    async def read(self, size: int) -> bytes | None:
        """Return the next data, or None if nothing more will come."""


class FileSide(Side):
    """A program that uses the port's file."""

    def __init__(self, path: Path, pace: Pace, sends: Flow, receives: Flow) -> None:
        super().__init__(pace, sends, receives)
        self._path = path
        self._fd = -1

    async def open(self) -> None:
        self._fd = await in_thread(lambda: os.open(self._path, os.O_RDWR | os.O_NONBLOCK))

    async def close(self) -> None:
        fd, self._fd = self._fd, -1
        trio.lowlevel.notify_closing(fd)
        await in_thread(lambda: os.close(fd))

    async def write(self, data: bytes) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOSPC):
                    raise
            await trio.lowlevel.wait_writable(self._fd)

    async def read(self, size: int) -> bytes | None:
        while True:
            await trio.lowlevel.checkpoint()  # not after the read: its data would be lost
            try:
                data = os.read(self._fd, size)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._fd)
                continue
            if data:
                return data
            await trio.sleep(0.01)  # no client is there; another one will come


class ClientSide(Side):
    """A client of the port's socket at the host end."""

    def __init__(self, path: Path, pace: Pace, sends: Flow, receives: Flow) -> None:
        super().__init__(pace, sends, receives)
        self._path = path
        self._sock: trio.socket.SocketType

    async def open(self) -> None:
        self._sock = trio.socket.socket(socket.AF_UNIX)
        try:
            with trio.fail_after(20):
                await self._sock.connect(str(self._path))
        except BaseException:
            self._sock.close()
            raise

    async def close(self) -> None:
        """Take what has been delivered, so that nothing is lost in the socket."""
        with suppress(OSError), self._sock, trio.move_on_after(_LEAVING):
            self._sock.shutdown(socket.SHUT_RDWR)
            while data := await self._sock.recv(1 << 16):
                self.receives.track.take(data)

    async def write(self, data: bytes) -> int:
        return await self._sock.send(data)

    async def read(self, size: int) -> bytes | None:
        return await self._sock.recv(size) or None


class Port:
    """A port, from when it is added until it is removed."""

    def __init__(self, port_id: int, serial: int) -> None:
        self.id, self.serial = port_id, serial
        self.up, self.down = Flow(serial, upward=True), Flow(serial, upward=False)
        self.scope = trio.CancelScope()
        self.is_gone = trio.Event()
        #: Bytes missing and dropped when the account began.
        self.before = (0, 0)

    @property
    def name(self) -> str:
        return f"port{self.serial}"

    @property
    def received(self) -> int:
        """The number of bytes that have come, both ways."""
        return self.up.track.received + self.down.track.received

    @property
    def missing(self) -> int:
        """The number of bytes that were accepted and have not come, both ways."""
        return self.up.missing + self.down.missing

    def spec(self, folder: Path) -> str:
        return f"{self.name}=unix:{folder}/s{self.serial},id={self.id}"

    async def use(self, folder: Path, file: Path, pace: Pace) -> None:
        """Let both sides use the port until it is to be removed."""
        client = ClientSide(folder / f"s{self.serial}", pace, self.down, self.up)
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(FileSide(file, pace, self.up, self.down).run)
                nursery.start_soon(client.run)
        self.is_gone.set()

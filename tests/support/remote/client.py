"""The test's end of `worker`: does things with files elsewhere, as if they were here."""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from vconfs.system.tasks import open_background

#: Seconds that one call may take.
PATIENCE = 60.0

#: Shared by all clients of this process, so that a late answer matches no other request.
_ids = itertools.count(1)


class WorkerEnded(AssertionError):
    """The worker has ended, maybe with its machine, before it answered."""


class Remote:
    """Asks a worker for one thing or several at a time. Its errors are OSError, as in os."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._sending = trio.StrictFIFOLock()
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, tuple[Any, int]] = {}
        self._ended = False

    async def ready(self, patience: float = PATIENCE) -> None:
        """Wait for a worker that has just been started."""
        await self._answer(0, patience)

    async def open(self, path: str, flags: int = os.O_RDWR | os.O_NONBLOCK) -> int:
        return int(await self._ask("open", path, flags))

    async def close(self, descriptor: int) -> None:
        await self._ask("close", descriptor)

    async def read(self, descriptor: int, size: int) -> bytes:
        return str(await self._ask("read", descriptor, size)).encode("latin-1")

    async def write(self, descriptor: int, data: bytes, times: int = 1) -> int:
        """Write `data` `times` times, with one call; only `data` itself has to be sent."""
        return int(await self._ask("write", descriptor, data.decode("latin-1"), times))

    async def write_repeated(self, descriptor: int, unit: bytes, size: int) -> int:
        return int(await self._ask("write_repeated", descriptor, unit.decode("latin-1"), size))

    async def read_digest(self, descriptor: int, size: int) -> str:
        return str(await self._ask("read_digest", descriptor, size))

    async def set_blocking(self, descriptor: int, blocking: bool) -> None:
        await self._ask("set_blocking", descriptor, blocking)

    async def poll(self, descriptor: int) -> int:
        return int(await self._ask("poll", descriptor))

    async def poll_until(self, descriptor: int, wanted: int = 0, unwanted: int = 0) -> int:
        """Wait until these bits of poll(2) are there, and those not; give what there is."""
        return int(await self._ask("poll_until", descriptor, wanted, unwanted))

    async def connected(self, descriptor: int, connected: bool = True) -> None:
        """Wait until the host has an open port connected, or hung up."""
        hup = select.POLLHUP
        mask = await self.poll_until(descriptor, *((0, hup) if connected else (hup, 0)))
        assert bool(mask & hup) != connected

    async def exists_until(self, path: str, wanted: bool = True) -> None:
        """Wait until a path is there, or is not."""
        assert await self._ask("exists_until", path, wanted) == wanted, path

    async def kernel_port(self, name: str) -> str:
        """Wait for the port of that name that the kernel's driver has; its device file."""
        return str(await self._ask("kernel_port", name))

    async def listdir(self, path: str) -> list[str]:
        return sorted(await self._ask("listdir", path))

    async def readlink(self, path: str) -> str:
        return str(await self._ask("readlink", path))

    async def getxattr(self, path: str, name: str) -> bytes:
        return str(await self._ask("getxattr", path, name)).encode("latin-1")

    async def run(self, command: str, status: int = 0) -> str:
        """Run a shell command, and give all that it says."""
        ended, said = await self.try_to_run(command)
        assert ended == status, f"{command}: {ended}\n{said}"
        return said

    async def try_to_run(self, command: str) -> tuple[int, str]:
        """Run a shell command; return its status, and all that it says."""
        ended, said = await self._ask("run", command)
        return int(ended), str(said)

    async def leave(self, status: int) -> None:
        """End the worker, without an answer."""
        await self._send(next(_ids), "leave", status)

    async def _ask(self, call: str, *arguments: object) -> Any:
        call_id = next(_ids)
        await self._send(call_id, call, *arguments)
        return await self._answer(call_id)

    async def _send(self, call_id: int, call: str, *arguments: object) -> None:
        async with self._sending:
            try:
                await self._stream.send_all(json.dumps([call_id, call, arguments]).encode() + b"\n")
            except trio.BrokenResourceError as error:
                raise WorkerEnded("the worker has ended") from error

    async def _answer(self, call_id: int, patience: float = PATIENCE) -> Any:
        waiting = self._waiting[call_id] = trio.Event()
        with trio.fail_after(patience):
            if call_id not in self._answers and not self._ended:
                await waiting.wait()
        del self._waiting[call_id]
        if call_id not in self._answers:
            raise WorkerEnded("the worker has ended before it answered")
        result, error = self._answers.pop(call_id)
        assert error >= 0, result
        if error:
            raise OSError(error, os.strerror(error))
        return result

    async def receive(self) -> None:
        """Take answers until the worker ends."""
        rest = b""
        while data := await self._receive_some():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                call_id, result, error = json.loads(line)
                self._answers[call_id] = (result, error)
                if call_id in self._waiting:
                    self._waiting[call_id].set()
        self._ended = True
        for waiting in self._waiting.values():
            waiting.set()

    async def _receive_some(self) -> bytes:
        """Return what the worker has sent, or b"" if it has ended."""
        try:
            return await self._stream.receive_some()
        except trio.BrokenResourceError:  # it has left a request unread
            return b""


@asynccontextmanager
async def open_remote(sock: socket.socket) -> AsyncIterator[Remote]:
    """Talk to the worker at the other end of a socket, which stays open."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock.dup()))
    async with stream, open_background() as nursery:
        remote = Remote(stream)
        nursery.start_soon(remote.receive)
        yield remote


@asynccontextmanager
async def open_local() -> AsyncIterator[Remote]:
    """Run a worker on this machine: a program of its own, as files may need one that waits."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "tests.support.remote.worker"], stdin=theirs.fileno()
            )
        try:
            async with open_remote(ours) as remote:
                await remote.ready()
                yield remote
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

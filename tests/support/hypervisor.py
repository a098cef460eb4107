"""A hypervisor as the host sees it: sockets that serve one client at a time, as QEMU's do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio
from attrs import define, field


@define(eq=False)
class Channel:
    """The hypervisor's socket for one channel of a guest."""

    path: Path
    _listener: socket.socket

    @property
    def client(self) -> socket.socket:
        """The client that has connected next. Raise BlockingIOError if there is none."""
        accepted, _ = self._listener.accept()
        accepted.setblocking(False)
        return accepted

    async def accept(self) -> trio.SocketStream:
        """Wait for the next client."""
        await trio.lowlevel.wait_readable(self._listener)
        return trio.SocketStream(trio.socket.from_stdlib_socket(self.client))

    def close(self) -> None:
        """Stop to listen, as a killed hypervisor does: the file stays."""
        self._listener.close()


@contextmanager
def channel(path: Path, kind: int = socket.SOCK_STREAM) -> Iterator[Channel]:
    """Listen at a path while the block runs, in place of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(1)
        yield Channel(path, listener)


@define(eq=False)
class Echo:
    """A hypervisor whose guest sends everything back in capitals, one client after the other."""

    path: Path
    #: How many clients there have been.
    clients: int = field(init=False, default=0)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        with channel(self.path) as listening:
            task_status.started()
            while True:
                async with await listening.accept() as client:
                    self.clients += 1
                    with suppress(trio.BrokenResourceError):
                        async for data in client:
                            await client.send_all(data.upper())


@contextmanager
def echoing(path: Path) -> Iterator[Path]:
    """Run an `Echo` in a thread while the block runs; then it is killed, and its socket stays."""
    token: list[trio.lowlevel.TrioToken] = []
    started = threading.Event()
    scope = trio.CancelScope()

    async def serve() -> None:
        token.append(trio.lowlevel.current_trio_token())
        with scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(Echo(path).run)
                started.set()

    thread = threading.Thread(target=trio.run, args=[serve])
    thread.start()
    try:
        assert started.wait(10)
        yield path
    finally:
        token[0].run_sync_soon(scope.cancel)
        thread.join()

"""A booted guest of user-mode Linux, whose root is this machine's own: a real kernel in a second.

A worker in it does what tests ask for, over its second serial line; the first one is free. A line
is lost for good after some 3 KiB of unread input, so requests must be short. Its
virtio consoles are of vhost-user back-ends, which have to be there when it boots.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from tests.support.booted import Booted
from tests.support.remote.client import Remote, WorkerEnded, open_remote
from tests.uml.kernels import Kernel

ROOT = Path(__file__).parents[2]
#: Seconds that it may take to boot, and to power off; on an idle machine it is one.
BOOT_SECONDS = 30
END_SECONDS = 20
_VIRTIO_CONSOLE = 3


class Guest(Booted):
    """A booted guest; `line` is the other end of its first serial line."""

    def __init__(
        self,
        kernel: Kernel,
        folder: Path,
        process: subprocess.Popen[bytes],
        line: socket.socket,
        worker: socket.socket,
    ) -> None:
        super().__init__(folder)
        self.kernel = kernel
        self.line = line
        self._process = process
        self._worker = worker

    @asynccontextmanager
    async def open_remote(self) -> AsyncIterator[Remote]:
        """Do things in the guest; one at a time can."""
        async with open_remote(self._worker) as remote:
            yield remote

    async def run(self, command: str) -> str:
        """Run a shell command, and return all that it says."""
        async with self.open_remote() as remote:
            return await remote.run(command)

    async def boots(self) -> bool:
        """Wait until the guest is up, or has ended."""
        try:
            async with self.open_remote() as remote:
                await remote.ready(BOOT_SECONDS)
        except (trio.TooSlowError, WorkerEnded):
            return False
        return True

    async def end(self, status: int) -> None:
        """Have the worker end with this status; the guest ends with it."""
        async with self.open_remote() as remote:
            await remote.leave(status)

    def check_ended(self, status: int) -> None:
        try:
            self._process.wait(END_SECONDS)
            ended = (self.folder / "status").read_text().strip()
        except (subprocess.TimeoutExpired, FileNotFoundError) as error:
            ended = repr(error)
        assert ended == str(status), f"the guest ended with {ended}; {self.said}"


@contextmanager
def open_guest(folder: Path, kernel: Kernel, devices: Sequence[Path]) -> Iterator[Guest]:
    """Boot a guest with consoles of these back-ends; it is not ready yet."""
    pairs = [socket.socketpair() for _ in range(2)]
    descriptors = [its.fileno() for _, its in pairs]
    command = kernel.command(
        folder,
        *("mem=256M", f"init={ROOT}/tests/uml/init"),
        *(f"FOLDER={ROOT}", f"PYTHON={sys.executable}", f"OUT={folder}"),
        *(f"virtio_uml.device={path}:{_VIRTIO_CONSOLE}" for path in devices),
        *(f"ssl{number}=fd:{fd}" for number, fd in enumerate(descriptors)),
    )
    with (folder / "console.log").open("wb") as console:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=descriptors,
            start_new_session=True,  # the kernel ends its whole group when it panics
        )
    try:
        for _, its in pairs:
            its.close()
        yield Guest(kernel, folder, process, *(ours for ours, _ in pairs))
    finally:
        process.kill()
        process.wait()
        for ours, _ in pairs:
            ours.close()

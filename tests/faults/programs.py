"""Both ends as programs of their own: `vconfs host`, and `vconfs mount` as its guest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
from attrs import define, field, frozen

from tests.support.waiting import until
from vconfs.system.tasks import open_background

_READY = b"vconfs: listening on"
#: The usual limit of a program's descriptors.
_USUAL_LIMIT = ("prlimit", "--nofile=1024:")


@define(eq=False)
class Program:
    """A `vconfs` command that runs, and what it has said on stderr."""

    process: trio.Process
    said: bytearray = field(factory=bytearray)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ready(self) -> bool:
        """True if guests can connect (to a host end)."""
        return _READY in self.said

    @property
    def lines(self) -> list[str]:
        return self.said.decode().splitlines()

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, and wait until the program has ended."""
        if self.process.returncode is None:
            os.kill(self.pid, number)
        await self.process.wait()

    async def listen(self) -> None:
        """Collect what it says."""
        assert self.process.stderr is not None
        while data := await self.process.stderr.receive_some():
            self.said += data

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident(self) -> int:
        """How much memory it holds, in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError("no VmRSS")


@frozen
class Both:
    """Starts the two ends, of one device in one folder."""

    folder: Path
    url: str
    #: What stands before the commands of the host end (0) and of the guest end (1).
    _inside: Callable[[int], Sequence[str]]
    _nursery: trio.Nursery

    @property
    def mountpoint(self) -> Path:
        return self.folder / "mnt"

    def file(self, port_id: int = 0) -> Path:
        return self.mountpoint / f"vcon{port_id}"

    def attribute(self, name: str, port_id: int = 0) -> bytes:
        """An attribute of a port, empty where it has none now."""
        with suppress(OSError):
            return os.getxattr(self.file(port_id), f"user.{name}")
        return b""

    async def until_connected(self, port_id: int = 0) -> None:
        await until(lambda: self.attribute("host", port_id) == b"1")

    async def host(self, *ports: str, words: Sequence[str] = ()) -> Program:
        """Start a host end with these ports, and wait until guests can come."""
        program = await self.begin_host(*ports, words=words)
        await until(lambda: program.ready or program.process.returncode is not None)
        assert program.ready, program.lines
        return program

    async def begin_host(self, *ports: str, words: Sequence[str] = ()) -> Program:
        """Start a host end."""
        words = [*words, *(word for port in ports for word in ("--port", port))]
        return await self.start(0, "vconfs", "host", "--listen", self.url, *words)

    async def mount(self, *words: str) -> Program:
        """Start a guest end, and wait until its files are there."""
        program = await self.begin_mount(*words)
        await until(lambda: self.serves(program.pid) or program.process.returncode is not None)
        assert program.process.returncode is None, program.lines
        return program

    async def begin_mount(self, *words: str) -> Program:
        """Start a guest end."""
        with suppress(FileExistsError):  # it may hold a dead mount, which no stat gets through
            os.mkdir(self.mountpoint)
        device = ("--device", self.url)
        return await self.start(1, "vconfs", "mount", "-f", *device, *words, str(self.mountpoint))

    def serves(self, pid: int) -> bool:
        """True if this process has a mount."""
        with suppress(OSError):
            return os.getxattr(self.mountpoint, "user.pid") == b"%d" % pid
        return False

    async def start(self, end: int, module: str, *words: str) -> Program:
        """Start a program, which is a module of Python's path."""
        process = await trio.lowlevel.open_process(
            [*self._inside(end), *_USUAL_LIMIT, sys.executable, "-m", module, *words],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        program = Program(process)
        self._nursery.start_soon(_own, program)
        return program


async def _own(program: Program) -> None:
    """Collect what a program says until it ends; it does not outlive us."""
    try:
        await program.listen()
        await program.process.wait()
    finally:
        with trio.CancelScope(shield=True):
            await program.kill()
            if program.process.stderr is not None:
                await program.process.stderr.aclose()


@asynccontextmanager
async def open_both(
    folder: Path, url: str, inside: Callable[[int], Sequence[str]] = lambda end: ()
) -> AsyncIterator[Both]:
    """Yield a starter of both ends; the programs that it starts end with the block."""
    try:
        async with open_background() as nursery:
            yield Both(folder, url, inside, nursery)
    finally:
        subprocess.run(["umount", "-l", folder / "mnt"], stderr=subprocess.DEVNULL, check=False)

"""Real mounts in the test's own process; programs that use the files run beside it.

A test that touched its own mount in its own thread, or started a program with a folder of the
mount as its working directory, would wait for itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio
from attrs import define

from vconfs import fuse

from .ports import Ports


@define
class Served:
    """A mount of `operations`."""

    path: Path
    operations: Any
    mount: fuse.Mount
    session: fuse.Session
    ended: trio.Event

    @property
    def file(self) -> Path:
        return self.path / "p0"

    async def script(self, text: str, *arguments: str) -> str:
        """Run a Python script whose argument is the first port's file; give what it prints."""
        done = await trio.run_process(
            [sys.executable, "-I", "-S", "-c", text, str(self.file), *arguments],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode()
        assert not done.returncode, output
        return output.strip()

    async def shell(self, command: str, code: int = 0) -> str:
        """Run a shell command; $P is the first port's file, $D the mount."""
        done = await trio.run_process(
            ["bash", "-c", command],
            env={"PATH": "/usr/bin:/bin", "P": str(self.file), "D": str(self.path)},
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode()
        assert done.returncode == code, output
        return output.strip()


@asynccontextmanager
async def program(*command: str) -> AsyncIterator[trio.Process]:
    """Run a program beside the test, which does not outlive it."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True), trio.move_on_after(5):
            await process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                await stream.aclose()


async def heard(process: trio.Process, end: bytes = b"\n") -> bytes:
    """Return what a program prints next, up to `end` or its end of file."""
    assert process.stdout is not None
    got = b""
    while not got.endswith(end) and (more := await process.stdout.receive_some()):
        got += more
    return got


class Serve(Protocol):
    def __call__(self, operations: Any = None) -> AbstractAsyncContextManager[Served]: ...


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def open_it(operations: Any = None) -> AsyncIterator[Served]:
        operations = operations or Ports()
        path = tmp_path / "mnt"
        path.mkdir(exist_ok=True)
        mount = fuse.mount(path)
        session, ended = fuse.Session(operations, mount.device), trio.Event()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await session.run(task_status)
            ended.set()

        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(run)
                yield Served(path, operations, mount, session, ended)
                nursery.cancel_scope.cancel()
        finally:
            mount.close()

    return open_it

"""Shared code of the tests of the examples."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

EXAMPLES = Path(__file__).parents[2] / "examples"

needs_inotifywait = pytest.mark.skipif(
    not shutil.which("inotifywait") or not shutil.which("getfattr"),
    reason="needs inotifywait and getfattr",
)


async def next_line(stream: trio.abc.ReceiveStream) -> str:
    """Read one line, and not a byte more."""
    line = b""
    while not line.endswith(b"\n"):
        data = await stream.receive_some(1)
        assert data, line
        line += data
    return line.decode().rstrip("\n")


async def kill_session(process: trio.Process) -> None:
    """End a program that `setsid` started, with all that it started."""
    await trio.run_process(["pkill", "-KILL", "-s", str(process.pid)], check=False)


def put_in_path(folder: Path, name: str, script: str) -> None:
    """Make a shell script that stands in for a program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)

"""Completion in a terminal of each shell."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from .conftest import OpenMount, program

PROMPT = "what-now>"

#: Shell -> how it is started with nothing of its owner's, and how it is set up.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source {script}"),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -u -D; source {script}"),
    "fish": (
        ["fish", "--no-config", "-i"],
        f"function fish_prompt; echo -n '{PROMPT}'; end; source {{script}}",
    ),
}
#: Where the command itself is.
BIN = str(Path(sys.executable).parent)


class Terminal:
    """A shell at a terminal."""

    def __init__(self, end: trio.lowlevel.FdStream) -> None:
        self._end = end
        self.seen = b""

    async def type(self, text: str) -> None:
        await self._end.send_all(text.encode())

    async def until(self, text: str) -> None:
        """Read until the terminal has shown this."""
        while text.encode() not in self.seen:
            self.seen += await self._end.receive_some()
        self.seen = self.seen.partition(text.encode())[2]


OpenTerminal = Callable[[], AbstractAsyncContextManager[Terminal]]


@pytest.fixture(params=sorted(SHELLS))
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> OpenTerminal:
    """Open a terminal with a shell that knows how to complete vconfs."""
    shell = request.param
    words, set_up = SHELLS[shell]
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{BIN}:/usr/bin:/bin",
        "PS1": PROMPT,
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
    }
    if not shutil.which(words[0]):
        pytest.fail(f"scripts/bootstrap installs {words[0]}")
    script = tmp_path / "completion"
    script.write_bytes(
        subprocess.run(
            ["vconfs"],
            env={**environment, "_VCONFS_COMPLETE": f"{shell}_source"},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    )

    @asynccontextmanager
    async def open_it() -> AsyncIterator[Terminal]:
        ours, theirs = pty.openpty()
        name = os.ttyname(theirs)
        command = 'exec "$@" <$0 >$0 2>&1'
        start = "setsid", "-c", "env", "-i", *(f"{k}={v}" for k, v in environment.items())
        async with (
            trio.lowlevel.FdStream(ours) as end,
            program("sh", "-c", command, name, *start, *words),
        ):
            at = Terminal(end)
            await at.type(set_up.format(script=script) + "\n")
            await at.type(f"echo {PROMPT[:4]}''{PROMPT[4:-1]}''ready\n")
            await at.until(f"{PROMPT[:-1]}ready")
            await at.until(PROMPT)
            os.close(theirs)
            yield at

    return open_it


async def test_ports_and_mounts_are_completed(mounted: OpenMount, terminal: OpenTerminal) -> None:
    name = f"org.vconfs.{os.getpid()}.clipboard"
    async with mounted(f"{name}=exec:echo this is $((6 * 7))") as it, terminal() as at:
        await at.type(f"vconfs cat {name[:-4]}\t\r")
        await at.until("this is 42")
        await at.type(f"vconfs cat {it.path}/org\t\r")
        await at.until("this is 42")
        await at.type(f"vconfs ls {str(it.path)[:-1]}\t\r")
        await at.until("OPEN BY")


async def test_a_device_is_completed_up_to_its_address(terminal: OpenTerminal) -> None:
    async with terminal() as at:
        with trio.fail_after(20):
            await at.type("vconfs mount --device stream:u\tno/such/socket /no\r")
            await at.until("cannot connect to no/such/socket")


async def test_paths_and_options_of_chardevs_are_completed(
    terminal: OpenTerminal, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f"long-{'x' * 100}").touch()
    async with terminal() as at:
        with trio.fail_after(20):
            await at.type(f"vconfs mount --port x=unix:{tmp_path}/fol\tlo\t /no\r")
            await at.until("a socket's path has at most 107 bytes")
            await at.type("vconfs mount --port x=unix:/s,cache,mo\tzzz /no\r")
            await at.until("mode is three octal digits, like 0660, not 'zzz'")


async def test_values_of_mount_options_are_completed(terminal: OpenTerminal) -> None:
    async with terminal() as at:
        with trio.fail_after(20):
            await at.type("vconfs mount -o thro\tzzz /no\r")
            await at.until("throttle is enospc, block, or a time like 10s, 500ms or 2m, not 'zzz'")
            await at.type("vconfs mount -o wait,uid=roo\t-o gid=zzz /no\r")
            await at.until("gid is a number or a name that is known here, not 'zzz'")

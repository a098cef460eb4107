"""Programs that put an epoll set with a port's file into another one, again and again.

Linux has one lock for all nested sets, and holds it while it asks our daemon about the port. A
daemon that nested a set itself would wait for that lock, and neither would go on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from tests.support.threads import in_thread

from .programs import Both

#: Nests sets with the file that it is given, until it is killed.
NESTER = """
import os, select, sys
port = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
inner = select.epoll()
inner.register(port, select.EPOLLIN)
print(flush=True)
while os.getppid() == int(sys.argv[2]):
    with select.epoll() as outer:
        outer.register(inner, select.EPOLLIN)
"""
NESTERS = 4
ROUNDS = 5
#: Seconds for one change of a port.
PATIENCE = 10


@contextmanager
def nesting(file: Path) -> Iterator[None]:
    """Let programs nest sets with a port's file during the block."""
    command = [sys.executable, "-c", NESTER, str(file), str(os.getpid())]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(NESTERS)]
    try:
        for program in programs:
            assert program.stdout is not None and program.stdout.readline() == b"\n"
        yield
    finally:
        for program in programs:
            program.kill()
        for program in programs:
            program.communicate()


async def until_host_is(both: Both, state: bytes, port_id: int) -> None:
    """Wait for an attribute, in threads: a daemon that stands still does not answer."""
    with trio.fail_after(PATIENCE):
        while await in_thread(lambda: both.attribute("host", port_id)) != state:
            await trio.sleep(0.01)


async def test_a_guest_end_goes_on_while_programs_nest_its_ports(both: Both) -> None:
    ports = ("agent=null", "echo=echo")
    host = await both.host(*ports)
    await both.mount()
    with nesting(both.file()):
        for _ in range(ROUNDS):
            await host.kill()
            await until_host_is(both, b"0", 1)
            host = await both.host(*ports)
            await until_host_is(both, b"1", 1)


@asynccontextmanager
async def host_with_files(both: Both, *ports: str) -> AsyncIterator[Path]:
    """A host end with a mount; yield its guest's folder."""
    mountpoint = both.folder / "host"
    mountpoint.mkdir()
    try:
        await both.host(*ports, words=("--mount", str(mountpoint)))
        names = await in_thread(lambda: os.listdir(mountpoint))
        yield mountpoint / next(name for name in names if not name.startswith("."))
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True)


async def test_a_host_end_goes_on_while_programs_nest_its_ports(both: Both) -> None:
    talk = both.folder / "talk"
    async with host_with_files(both, "agent=mount", f"talk=unix:{talk}", "run=exec:cat") as files:
        guest = await both.mount()
        with nesting(files / "vcon0"):
            for _ in range(ROUNDS):
                await until_host_is(both, b"1", 2)
                async with await trio.open_unix_socket(str(talk)) as client:
                    await client.send_eof()
                    await until_host_is(both, b"1", 1)
                await until_host_is(both, b"0", 1)
                await guest.kill(signal.SIGTERM)
                guest = await both.mount()

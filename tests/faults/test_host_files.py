"""The host's side as files: what one guest does to its files, the others do not see."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from tests.support.threads import in_thread
from tests.support.waiting import until
from vconfs.guest.port import Port

from .fleets import disturbed, open_guest
from .programs import Program, open_both

#: How many honest guests there are.
HONEST = 3


@asynccontextmanager
async def open_host_of_files(folder: Path) -> AsyncIterator[Program]:
    async with open_both(folder, f"stream:unix:{folder}/any,guest=*") as both:
        both.mountpoint.mkdir()
        words = ["--mount", str(both.mountpoint), "-o", "wait"]
        yield await both.host("port=mount", words=words)


@asynccontextmanager
async def echoed(folder: Path, name: str) -> AsyncIterator[Port]:
    """A guest, and beside the host end a program that sends back what comes in its file."""
    file = folder / "mnt" / name / "vcon0"
    async with trio.open_nursery() as nursery:

        async def send_back() -> None:
            await until(file.exists)
            words = ["bash", "-c", 'exec 3<>"$0"; cat <&3 | cat >&3', str(file)]
            await trio.run_process(words, check=False, stderr=subprocess.DEVNULL)

        nursery.start_soon(send_back)
        async with open_guest(f"{folder}/any", name) as port:
            yield port
        nursery.cancel_scope.cancel()


async def test_guests_that_flood_and_die_do_not_disturb_the_files_of_others(
    tmp_path: Path, numbers: random.Random
) -> None:
    async with open_host_of_files(tmp_path) as host:
        victim = tmp_path / "mnt" / "victim"
        async with disturbed(
            tmp_path,
            [f"g{number}" for number in range(HONEST)],
            partial(echoed, tmp_path),
            numbers,
            lambda: os.getxattr(victim, "user.connected") == b"0",
        ):
            queued = await in_thread(lambda: int(os.getxattr(victim / "vcon0", "user.queued")))
            assert queued <= 80 << 20  # what was on its way on each connection, up to a bound
        assert host.resident() < 200 << 10
        assert not [line for line in host.lines if "Traceback" in line]

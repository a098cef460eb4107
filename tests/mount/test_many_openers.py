"""Many openers of one port: what is told of them is bounded, and nothing is looked up for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.support.threads import in_thread

from .conftest import OpenMount, program

COUNT = 2003
#: Opens the file that it is given as often as it is told, with as many descriptors as it may have.
OPENER = """
import os, resource, sys
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
files = [os.open(sys.argv[1], os.O_RDWR | os.O_NONBLOCK) for _ in range(int(sys.argv[2]))]
open("/proc/self/comm", "wb").write(b"renamed")
print("open", flush=True)
sys.stdin.read()
"""


async def test_openers_are_named_as_they_were_and_up_to_sixteen(mounted: OpenMount) -> None:
    async with mounted("port=echo") as it:
        opener = (sys.executable, "-c", OPENER, str(it.file()), str(COUNT))
        async with program(*opener, stdin=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert await process.stdout.receive_some() == b"open\n"
            assert len(it.port().openers) == COUNT
            one = f"{process.pid} {os.path.basename(sys.executable)[:15]}"
            told = await in_thread(lambda: os.getxattr(it.file(), "user.openers").decode())
            assert told == ", ".join([one] * 16) + " and 1987 more"
            begun = time.monotonic()
            for _ in range(20):
                assert "user.openers" in await in_thread(lambda: os.listxattr(it.file()))
            assert time.monotonic() - begun < 2  # it took a second for each
        await it.until(lambda: not it.port().openers)
        assert await in_thread(lambda: os.getxattr(it.file(), "user.openers")) == b""

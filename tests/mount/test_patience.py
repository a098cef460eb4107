"""How long a write waits for its host, and what programs that append get, in both dialects."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.devices import OpenDevice
from tests.support.threads import error_of, in_thread
from vconfs.device.embedded import open_embedded
from vconfs.guest.driver import drive
from vconfs.guest.port import PortOptions

from .conftest import Mounted, OpenMount, program

MIB = 1 << 20


@pytest.fixture(params=["v8", "virtio1"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def device(dialect: str) -> OpenDevice:
    return lambda host, manager, folder: drive(manager, open_embedded(host, dialect))


#: For tests of what only this dialect does.
v8 = pytest.mark.parametrize("dialect", ["v8"], indirect=True)
virtio1 = pytest.mark.parametrize("dialect", ["virtio1"], indirect=True)


async def until_waiting(it: Mounted) -> None:
    """Wait until a write waits in the port."""
    await it.until(lambda: it.port()._outbox.turn.locked())


@asynccontextmanager
async def connected(it: Mounted, folder: Path) -> AsyncIterator[trio.SocketStream]:
    """Connect to the port's socket, as its host."""
    async with await trio.open_unix_socket(f"{folder}/sock") as host:
        await it.until(lambda: it.port().host_connected)
        yield host


# --- a throttled port ---------------------------------------------------------------------


@v8
@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["plain", "append"])
async def test_a_write_waits_for_the_time_limit_and_then_is_enospc(
    mounted: OpenMount, tmp_path: Path, flags: int
) -> None:
    spec = f"port=unix:{tmp_path}/sock,cache,host-limit=10"
    async with mounted(spec, throttle="300ms") as it:
        fd = await in_thread(lambda: os.open(it.file(), os.O_WRONLY | flags))
        assert await in_thread(lambda: os.write(fd, b"0123456789")) == 10
        began = time.monotonic()
        assert await error_of(lambda: os.write(fd, b"x")) == errno.ENOSPC
        assert time.monotonic() - began >= 0.3
        assert it.port().counters.bytes_out == 10
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        it.port().set_options(PortOptions(throttle="1m"))
        assert await error_of(lambda: os.write(fd, b"x")) == errno.ENOSPC
        async with connected(it, tmp_path) as host:
            assert await host.receive_some() == b"0123456789"
            await it.until(lambda: not it.port().host_throttled)
            assert await in_thread(lambda: os.write(fd, b"x")) == 1
        await in_thread(lambda: os.close(fd))


async def test_what_a_host_reads_slowly_all_arrives(mounted: OpenMount, tmp_path: Path) -> None:
    data = os.urandom(4 * MIB)
    (tmp_path / "big").write_bytes(data)
    async with mounted(f"port=unix:{tmp_path}/sock,host-limit=100000") as it:
        async with connected(it, tmp_path) as host:
            async with program("bash", "-c", f"cat {tmp_path}/big >{it.file()}") as writer:
                got = bytearray()
                while len(got) < len(data):
                    got += await host.receive_some(30_000)
                assert await writer.wait() == 0
            assert got == data


@v8
@pytest.mark.parametrize("throttle", ["1m", "block"])
async def test_a_signal_ends_the_wait(mounted: OpenMount, tmp_path: Path, throttle: str) -> None:
    spec = f"port=unix:{tmp_path}/sock,cache,host-limit=10"
    async with mounted(spec, throttle=throttle) as it:
        await it.run("printf 0123456789 >$P")
        async with program("bash", "-c", 'printf lost >>"$0"', str(it.file())) as writer:
            await until_waiting(it)
            os.kill(writer.pid, signal.SIGINT)
            assert await writer.wait() == -signal.SIGINT
        async with connected(it, tmp_path) as host:
            await it.run("printf more >>$P")
            got = b""
            while not got.endswith(b"more"):
                got += await host.receive_some()
            assert got == b"0123456789more"


@v8
async def test_writers_that_queue_up_give_up_together(mounted: OpenMount, tmp_path: Path) -> None:
    spec = f"port=unix:{tmp_path}/sock,cache,host-limit=10"
    async with mounted(spec, throttle="3s") as it:
        await it.run("printf 0123456789 >$P")
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(lambda: it.run("printf x >>$P 2>/dev/null", code=1))
        assert 3 <= time.monotonic() - began < 6


@v8
async def test_unmounting_ends_the_wait(mounted: OpenMount, tmp_path: Path) -> None:
    spec = f"port=unix:{tmp_path}/sock,cache,host-limit=10"
    async with mounted(spec, throttle="1m") as it:
        await it.run("printf 0123456789 >$P")
        async with program("bash", "-c", 'printf lost >"$0"', str(it.file())) as writer:
            await until_waiting(it)
            await it.manager.shut()
            assert await writer.wait() == 1


# --- appending ----------------------------------------------------------------------------

_STDIO = """
#include <stdio.h>
int main(int count, char **arguments) {
    FILE *port = fopen(arguments[1], "a");
    for (int line = 0; port && line < 100000; line++)
        if (fprintf(port, "%d\\n", line) < 0) break;
    if (!port || ferror(port) || fclose(port)) { perror(arguments[1]); return 1; }
    return 0;
}
"""
_PYTHON = """
import sys
with open(sys.argv[1], "ab") as port:
    for line in range(100000):
        port.write(b"%d\\n" % line)
"""
#: Programs that append the numbers below 100000, a line each, to $P.
PROGRAMS = {
    "bash": "printf '%s\\n' {0..99999} >>$P",
    "seq": "seq 0 99999 >>$P",
    "tee": "set -o pipefail; seq 0 99999 | tee -a $P >/dev/null",
    "dd": "set -o pipefail; seq 0 99999 | dd bs=1000 oflag=append conv=notrunc of=$P status=none",
    "busybox": "set -o pipefail; seq 0 99999 | busybox tee -a $P >/dev/null",
    "python": f"{sys.executable} -c '{_PYTHON}' $P",
    "stdio": "$STDIO $P",
}
LINES = "".join(f"{number}\n" for number in range(100_000)).encode()


@pytest.fixture(scope="module")
def stdio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of C that appends by stdio."""
    folder = tmp_path_factory.mktemp("stdio")
    (folder / "append.c").write_text(_STDIO)
    subprocess.run(["cc", "-o", folder / "append", folder / "append.c"], check=True)
    return folder / "append"


def appending(it: Mounted, stdio: Path, name: str) -> AbstractAsyncContextManager[trio.Process]:
    command = PROGRAMS[name].replace("$P", str(it.file())).replace("$STDIO", str(stdio))
    return program("bash", "-c", command)


@pytest.mark.parametrize("throttle", ["block", "10s"])
@pytest.mark.parametrize("name", PROGRAMS)
async def test_programs_that_append_wait_for_a_slow_host(
    mounted: OpenMount, tmp_path: Path, stdio: Path, name: str, throttle: str
) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock,host-limit=4096", throttle=throttle) as it:
        async with connected(it, tmp_path) as host, appending(it, stdio, name) as writer:
            got = bytearray()
            while len(got) < len(LINES):
                got += await host.receive_some(10_000)
            assert await writer.wait() == 0
            assert got == LINES


@v8
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.expect_log("could not be delivered")
async def test_appending_programs_get_the_error_of_a_throttling_host(
    mounted: OpenMount, tmp_path: Path, stdio: Path, name: str
) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock,host-limit=4096", throttle="enospc") as it:
        async with connected(it, tmp_path), appending(it, stdio, name) as writer:
            assert await writer.wait() == 1  # the socket of a host that does not read is full
            assert writer.stdout is not None
            complaint = await writer.stdout.receive_some()
            assert b"No space left" in complaint or complaint.endswith(b"I/O error\n")


@virtio1
@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["plain", "append"])
async def test_the_second_write_of_a_file_waits_for_a_host_as_well(
    mounted: OpenMount, tmp_path: Path, flags: int
) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock", throttle="100ms") as it:
        fd = await in_thread(lambda: os.open(it.file(), os.O_WRONLY | flags))
        async with connected(it, tmp_path) as host:
            await in_thread(lambda: os.write(fd, b"first"))
            assert await host.receive_some() == b"first"
        await it.until(lambda: not it.port().host_connected)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, lambda: os.write(fd, b"second"))
            await until_waiting(it)
            async with connected(it, tmp_path) as host:
                assert await host.receive_some() == b"second"
        await in_thread(lambda: os.close(fd))

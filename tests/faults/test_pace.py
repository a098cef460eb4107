"""Traffic of random pace on four ports, both ways at once: each byte comes, once and in order."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from itertools import product
from pathlib import Path

import pytest
import trio

from tests.support.limits import LONG
from tests.support.waiting import until
from vconfs.system.tasks import open_background

from .conftest import DEVICES
from .programs import Both, Program, open_both

pytestmark = pytest.mark.limit(600)

PORTS = 4
#: Seconds of traffic; what is under way then is taken to its end.
SECONDS = 20.0 if LONG else 2.0
#: Seconds until the rest has come, on a machine that does other things as well.
END_SECONDS = 60
#: What a direction carries, over and over: of an odd length, so that a gap is seen.
PATTERN = random.Random(1).randbytes(1_048_573) * 2
#: -o of the mount, options of the host's ports.
LIMITS = {"default limits": ("", ""), "small limits": ("limit=5000", ",host-limit=3000")}

#: Limits, how busy the machine is otherwise, and the device.
CASES = list(product(LIMITS, ("idle", "busy") if LONG else ("idle",), ("embedded", *DEVICES)))
if not LONG:
    CASES.append(("default limits", "busy", DEVICES[0]))


class Pace:
    """How quickly a program writes or reads: quickly, slowly, or much from time to time."""

    def __init__(self, numbers: random.Random) -> None:
        self._numbers = random.Random(numbers.random())
        self._left = 0
        self._pause = 0.0

    async def size(self) -> int:
        """Pause, and give how many bytes to write or read next."""
        numbers = self._numbers
        if not self._left:
            kind = numbers.choice(("quick", "slow", "bursty"))
            self._left = numbers.randint(1, 200 if kind == "quick" else 20)
            self._pause = {"quick": 0.0, "slow": 0.005, "bursty": 0.0}[kind]
            if kind == "bursty":
                await trio.sleep(numbers.random() / 5)
        self._left -= 1
        await trio.sleep(self._pause)
        return numbers.choice((1, 700, 4096, numbers.randint(1, 65536), 1 << 20))


class Flow:
    """One direction of one port."""

    def __init__(self, name: str, numbers: random.Random) -> None:
        self.name = name
        self.sent = self.came = 0
        self.ended = trio.Event()
        self._start = numbers.randrange(len(PATTERN) // 2)
        self.writing, self.reading = Pace(numbers), Pace(numbers)

    def next(self, size: int) -> memoryview:
        return self._piece(self.sent, size)

    def take(self, data: bytes) -> None:
        """Check what came."""
        at = 0
        while at < len(data):
            piece = self._piece(self.came, len(data) - at)
            where = f"{self.name}: wrong data behind byte {self.came} of {self.sent}"
            assert data[at : at + len(piece)] == piece, where
            at += len(piece)
            self.came += len(piece)

    @property
    def done(self) -> bool:
        return self.ended.is_set() and self.came == self.sent

    def _piece(self, place: int, size: int) -> memoryview:
        at = (self._start + place) % (len(PATTERN) // 2)
        return memoryview(PATTERN)[at : at + min(size, len(PATTERN) // 2)]


async def write_file(file: int, flow: Flow) -> None:
    while True:
        data = flow.next(await flow.writing.size())
        try:
            flow.sent += os.write(file, data)
        except OSError as error:
            assert error.errno in (errno.ENOSPC, errno.EAGAIN)
            await trio.lowlevel.wait_writable(file)


async def read_file(file: int, flow: Flow) -> None:
    while True:
        try:
            data = os.read(file, await flow.reading.size())
            assert data, f"{flow.name}: end of file"
            flow.take(data)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(file)


async def write_socket(sock: trio.socket.SocketType, flow: Flow) -> None:
    while True:
        flow.sent += await sock.send(flow.next(await flow.writing.size()))


async def read_socket(sock: trio.socket.SocketType, flow: Flow) -> None:
    while True:
        data = await sock.recv(await flow.reading.size())
        assert data, f"{flow.name}: the connection ended"
        flow.take(data)


@contextmanager
def busy_processes() -> Iterator[None]:
    """Keep the machine busy."""
    loop = ["sh", "-c", "while :; do :; done"]
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            process = stack.enter_context(subprocess.Popen(loop))
            stack.callback(process.kill)
        yield


@asynccontextmanager
async def ends(folder: Path, device: str, limits: str) -> AsyncIterator[tuple[Both, list[Program]]]:
    """Run both ends with four ports; give the programs that there are."""
    option, host_option = LIMITS[limits]
    ports = [f"p{i}=unix:{folder}/p{i},id={i}{host_option}" for i in range(PORTS)]
    words = ["-o", option] if option else []
    url = device if device == "embedded" else f"{device}:{folder}/device"
    async with open_both(folder, url) as both:
        if device == "embedded":
            words += [word for port in ports for word in ("--port", port)]
            yield both, [await both.mount(*words)]
        else:
            host = await both.host(*ports)
            yield both, [host, await both.mount(*words)]


async def carry(both: Both, numbers: random.Random, seconds: float) -> None:
    """Have traffic on all ports, and see that all of it comes."""
    flows: list[Flow] = []
    with ExitStack() as stack:
        async with open_background() as readers:
            async with open_background() as writers:
                for port_id in range(PORTS):
                    sock = stack.enter_context(trio.socket.socket(trio.socket.AF_UNIX))
                    await sock.connect(str(both.folder / f"p{port_id}"))
                    await both.until_connected(port_id)
                    file = os.open(both.file(port_id), os.O_RDWR | os.O_NONBLOCK)
                    stack.callback(os.close, file)
                    up, down = (
                        Flow(f"port {port_id} up", numbers),
                        Flow(f"port {port_id} down", numbers),
                    )
                    flows += [up, down]
                    writers.start_soon(write_file, file, up)
                    readers.start_soon(read_socket, sock, up)
                    writers.start_soon(write_socket, sock, down)
                    readers.start_soon(read_file, file, down)
                await trio.sleep(seconds)
            with suppress(trio.TooSlowError):
                await until(lambda: all(flow.came >= flow.sent for flow in flows), END_SECONDS)
            assert [f"{f.name}: {f.came} of {f.sent}" for f in flows if f.came != f.sent] == []
    print(", ".join(f"{flow.name}: {flow.sent >> 10} KiB" for flow in flows))


@pytest.mark.parametrize(
    ("limits", "load", "device"), CASES, ids=[" ".join(case) for case in CASES]
)
async def test_traffic_of_random_pace_comes_whole(
    tmp_path: Path, numbers: random.Random, device: str, limits: str, load: str
) -> None:
    with busy_processes() if load == "busy" else ExitStack():
        with trio.fail_after(SECONDS + 2 * END_SECONDS):
            async with ends(tmp_path, device, limits) as (both, programs):
                await carry(both, numbers, SECONDS)
                said = [line for program in programs for line in program.lines]
                assert [line for line in said if "THROTTLE" in line] == []

"""Much data, identical at the other end, whatever the neighbours do; and bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.support.limits import LONG

from .conftest import OpenMount, program
from .test_commands import folder
from .test_host_files import mounting_host

__all__ = ["folder"]

SIZE = 64 << 20 if LONG else 16 << 20

#: Writes SIZE bytes of a seeded generator to a file in odd sizes, or reads them and prints a hash.
MOVE = """
import hashlib, os, random, sys
path, way, size, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
numbers = random.Random(seed)
fd = os.open(path, os.O_WRONLY if way == "write" else os.O_RDONLY)
digest, left = hashlib.sha256(), size
while left:
    step = min(left, numbers.choice([1, 7, 512, 4095, 4096, 4097, 65535, 131072, 1000003]))
    data = numbers.randbytes(step) if way == "write" else os.read(fd, step)
    if not data: sys.exit(f"end of file with {left} bytes to come")
    digest.update(data)
    left -= len(data)
    while way == "write" and data:
        data = data[os.write(fd, data):]
print(digest.hexdigest())
"""


def seeded(seed: int, size: int) -> str:
    """The hash of what MOVE writes."""
    numbers, digest, left = random.Random(seed), hashlib.sha256(), size
    while left:
        step = min(left, numbers.choice([1, 7, 512, 4095, 4096, 4097, 65535, 131072, 1000003]))
        digest.update(numbers.randbytes(step))
        left -= step
    return digest.hexdigest()


@pytest.mark.limit(120)
@pytest.mark.expect_log("could not be delivered")
async def test_much_goes_each_way_while_one_neighbour_is_stuck_and_another_flaps(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(
        f"bulk=unix:{tmp_path}/bulk",
        f"stuck=unix:{tmp_path}/stuck,cache,host-limit=100",
        f"flaps=unix:{tmp_path}/flaps",
        throttle="block",
        limit_seconds=100,
    ) as it:
        host = await trio.open_unix_socket(f"{tmp_path}/bulk")
        await it.until(lambda: it.port().host_connected)
        stuck = await trio.open_unix_socket(f"{tmp_path}/stuck")
        flaps = 0

        async def flap() -> None:
            nonlocal flaps
            while True:
                async with await trio.open_unix_socket(f"{tmp_path}/flaps") as client:
                    await client.send_all(b"here")
                    await it.until(lambda: it.port(2).queued)
                await it.until(lambda: not it.port(2).host_connected)
                it.port(2).read_nowait(100)
                flaps += 1

        received = hashlib.sha256()

        async def receive() -> None:
            left = SIZE
            while left:
                data = await host.receive_some(min(left, 1 << 20))
                received.update(data)
                left -= len(data)

        sent = hashlib.sha256()

        async def send() -> None:
            numbers, left = random.Random(3), SIZE
            while left:
                data = numbers.randbytes(min(left, numbers.choice([1, 4095, 65537, 300_001])))
                sent.update(data)
                await host.send_all(data)
                left -= len(data)

        move = (sys.executable, "-c", MOVE, str(it.file()))
        async with (
            program(*move, "write", str(SIZE), "5") as writer,
            program(*move, "read", str(SIZE), "0") as reader,
            program("bash", "-c", 'yes > "$0"', str(it.file(1))),
            trio.open_nursery() as background,
        ):
            background.start_soon(flap)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(send)
            assert writer.stdout is not None
            assert reader.stdout is not None
            written = (await writer.stdout.receive_some()).decode().strip()
            read = (await reader.stdout.receive_some()).decode().strip()
            assert it.port(1).host_throttled
            background.cancel_scope.cancel()
        assert written == received.hexdigest() == seeded(5, SIZE)
        assert read == sent.hexdigest()
        assert flaps > 3
        await host.aclose()
        await stuck.aclose()


# --- memory -------------------------------------------------------------------------------


def resident(pid: int) -> int:
    """Resident memory in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) >> 10
    raise AssertionError("no VmRSS")


def mount(folder: Path, *words: str) -> int:
    """Mount in a process of its own, and give its pid."""
    folder.mkdir()
    command = [sys.executable, "-m", "vconfs", "mount", *words, str(folder)]
    subprocess.run(command, check=True, timeout=20)
    return int(os.getxattr(folder, "user.pid"))


def umount(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "vconfs", "umount", str(folder)], check=True, timeout=20)


def test_an_idle_mount_with_64_ports_is_below_60_mib(tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    ports = [f"--port=p{port_id}=unix:{tmp_path}/{port_id}" for port_id in range(64)]
    daemon = mount(folder, *ports)
    try:
        assert len(list(folder.glob("vcon*"))) == 64
        assert resident(daemon) < 60
    finally:
        umount(folder)


def flood(path: Path, size: int, seconds: float) -> int:
    """Write to a socket or a file without end, in small pieces; tell how much went."""
    script = """
import os, socket, stat, sys, time
path, size, end = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
if stat.S_ISSOCK(os.stat(path).st_mode):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    fd = sock.detach()
else:
    fd = os.open(path, os.O_WRONLY)
os.set_blocking(fd, False)
sent, data = 0, b"x" * size
while time.monotonic() < end:
    try: sent += os.write(fd, data)
    except OSError: pass
print(sent)
"""
    words = [sys.executable, "-c", script, str(path), str(size), str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=True)
    return int(done.stdout)


#: Seconds that a flood lasts: in the short form enough for a few times what may be queued.
FLOOD = 60.0 if LONG else 1.0


@pytest.mark.limit(200)
@pytest.mark.parametrize("size", [1, 4096, 100_000] if LONG else [1, 100_000])
@pytest.mark.parametrize("who", ["host", "guest"])
def test_a_flood_of_a_port_without_a_reader_is_bounded(tmp_path: Path, who: str, size: int) -> None:
    folder = tmp_path / "mnt"
    daemon = mount(folder, f"--port=p=unix:{tmp_path}/sock,cache")
    try:
        before = resident(daemon)
        flood(tmp_path / "sock" if who == "host" else folder / "vcon0", size, FLOOD)
        check_bounded(daemon, before, folder, on_its_way=2 * PIECE)
    finally:
        umount(folder)


#: How many bytes a ring holds, and how many are read from a client at once.
RING, PIECE = 5 << 20, 1 << 18


def check_bounded(daemon: int, before: int, folder: Path, on_its_way: int) -> None:
    """Check how much memory a daemon has, and how much its port has queued.

    That may be its limit, and what was on its way when the other end was told to stop.
    """
    limit = 1 << 20
    assert resident(daemon) - before <= (limit + RING >> 20) + 2
    done = subprocess.run(
        [sys.executable, "-m", "vconfs", "ls", "--json", str(folder)],
        capture_output=True,
        check=True,
        timeout=20,
    )
    assert json.loads(done.stdout)["queued"] <= limit + on_its_way


@pytest.mark.limit(200)
@pytest.mark.parametrize("size", [1, 4096, 100_000] if LONG else [1, 100_000])
@pytest.mark.parametrize("who", ["host", "guest"])
@pytest.mark.parametrize("device", ["stream:unix", "vhost-user"])
def test_a_flood_of_a_file_of_the_hosts_side_is_bounded(
    folder: Path, device: str, who: str, size: int
) -> None:
    url = f"{device}:{folder}/web1"
    with mounting_host(folder, "--listen", url, "--port", "p=mount", listeners=2) as process:
        guest, ours = folder / "guest", folder / "guests" / "web1"
        mount(guest, "--device", url)
        try:
            before = resident(process.pid)
            flood((ours if who == "host" else guest) / "vcon0", size, FLOOD)
            check_bounded(process.pid, before, ours, on_its_way=RING)
        finally:
            umount(guest)


def test_an_idle_host_end_with_64_files_is_below_60_mib(folder: Path) -> None:
    ports = [f"--port=p{port_id}=mount" for port_id in range(64)]
    listen = ["--listen", f"stream:unix:{folder}/web1"]
    with mounting_host(folder, *listen, *ports, listeners=2) as process:
        assert len(list((folder / "guests" / "web1").glob("vcon*"))) == 64
        assert resident(process.pid) < 60

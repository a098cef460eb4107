"""Two hosts with 30 ms and lost packets between them."""

from __future__ import annotations

import errno
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.support.threads import in_thread
from tests.support.waiting import until

from .conftest import LIMIT
from .network import ADDRESSES, Network, open_network
from .programs import Both, Program, open_both

PORT = 7077
SIZE = 8 << 20

#: Sends SIZE bytes to each client.
GIVE = f"""
import socket
listener = socket.create_server(("", 7078))
client, _ = listener.accept()
client.sendall(bytes({SIZE}))
"""
#: Takes bytes until the end, and says how many seconds that took.
TAKE = f"""
import socket, time
while True:
    try: client = socket.create_connection(("{ADDRESSES[0]}", 7078))
    except ConnectionRefusedError: continue
    break
begun = time.monotonic()
while client.recv(1 << 16): pass
print(time.monotonic() - begun)
"""


@pytest.fixture
async def network() -> AsyncIterator[Network]:
    async with open_network() as made:
        yield made


@pytest.fixture
async def both(network: Network, tmp_path: Path) -> AsyncIterator[Both]:
    with trio.fail_after(LIMIT):
        async with open_both(tmp_path, f"stream:tcp:{ADDRESSES[0]}:{PORT}", network.inside) as it:
            yield it


async def start(both: Both) -> Program:
    return await both.host(f"bulk=unix:{both.folder}/bulk,cache", "echo=echo")


async def plain(network: Network) -> float:
    """How many seconds SIZE bytes take over TCP alone."""
    async with trio.open_nursery() as nursery:
        give = [*network.inside(0), sys.executable, "-c", GIVE]
        nursery.start_soon(trio.run_process, give)
        take = [*network.inside(1), sys.executable, "-c", TAKE]
        done = await trio.run_process(take, capture_stdout=True)
    return float(done.stdout)


async def test_data_both_ways_while_a_user_types(both: Both, network: Network) -> None:
    alone = await plain(network)
    await start(both)
    await both.mount("-o", "throttle=block")
    await both.until_connected(1)
    async with await trio.open_unix_socket(f"{both.folder}/bulk") as client:
        await both.until_connected()
        typed, took = await exchange(both, client)
    print(f"TCP alone: {alone:.1f} s one way; ports: {took:.1f} s both ways; {typed} keys")
    assert typed > 2
    assert took < 10 * alone + 5


async def exchange(both: Both, client: trio.SocketStream) -> tuple[int, float]:
    """Move SIZE bytes each way, and type meanwhile; give how many keys, and the seconds."""
    bulk, echo = os.open(both.file(), os.O_RDWR), os.open(both.file(1), os.O_RDWR)
    up, down = random.randbytes(SIZE), random.randbytes(SIZE)
    got: dict[str, bytes] = {"up": b"", "down": b""}
    begun = trio.current_time()

    async def write() -> None:
        left = up
        while left:
            left = left[await in_thread(lambda data=left: os.write(bulk, data[:100_000])) :]  # type: ignore[misc]

    async def read() -> None:
        while len(got["down"]) < SIZE:
            got["down"] += await in_thread(lambda: os.read(bulk, 1 << 16))

    async def receive() -> None:
        while len(got["up"]) < SIZE:
            got["up"] += await client.receive_some(1 << 16)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, down)
        for task in (write, read, receive):
            nursery.start_soon(task)
        typed = 0
        while min(map(len, got.values())) < SIZE:
            await in_thread(lambda: os.write(echo, b"key"))
            assert await in_thread(lambda: os.read(echo, 3)) == b"key"
            typed += 1
    assert got == {"up": up, "down": down}
    os.close(bulk)
    os.close(echo)
    return typed, trio.current_time() - begun


async def test_hang_up_and_return(both: Both) -> None:
    host = await start(both)
    await both.mount()
    await both.until_connected(1)
    echo = os.open(both.file(1), os.O_RDWR)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            assert await in_thread(lambda: os.read(echo, 1)) == b""

        nursery.start_soon(wait)
        await until(lambda: both.attribute("openers", 1))
        await host.kill()
    await start(both)
    await both.until_connected(1)
    await in_thread(lambda: os.write(echo, b"back"))
    assert await in_thread(lambda: os.read(echo, 4)) == b"back"
    os.close(echo)


async def test_a_line_that_falls_silent_is_a_hang_up(both: Both, network: Network) -> None:
    await start(both)
    await both.mount()
    await both.until_connected(1)
    echo = os.open(both.file(1), os.O_RDWR | os.O_NONBLOCK)
    await network.run(1, "ip", "link", "set", "far0", "down")
    await until(lambda: both.attribute("host", 1) == b"0")
    with pytest.raises(OSError) as refused:
        os.write(echo, b"x")
    assert refused.value.errno == errno.ENOTCONN
    await network.run(1, "ip", "link", "set", "far0", "up")
    await both.until_connected(1)
    os.close(echo)

"""A peer that sends arbitrary bytes: no other is affected, and no resources are left over."""

from __future__ import annotations

import gc
import logging
import os
import random
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.support.limits import LONG
from tests.support.waiting import until
from vconfs.device.stream import open_stream
from vconfs.errors import VconfsError
from vconfs.guest.driver import drive
from vconfs.guest.ports import PortManager
from vconfs.protocol import v8
from vconfs.protocol.stream import BYE, CONFIG, CREDIT, HEADER, INPUT, OUTPUT, Connection, Role
from vconfs.system.tasks import open_background

from .conftest import LIMIT
from .conversation import Talk, assert_served, converse, serving

#: Bytes that a peer sends in all, in the everyday run; the issue's minute is for `VCONFS_LONG=1`.
BYTES = 4 << 20
SECONDS = 60.0
#: What the memory may grow by, in KiB: 32 Ki ports, as many as a host may say that it has.
SLACK = 64 << 10

#: What sends a hello and bytes that are not those of a conversation.
Noise = Callable[[random.Random, bytes, bytes, int], bytes]


def raw(numbers: random.Random, hello: bytes, said: bytes, queue: int) -> bytes:
    """Anything at all."""
    return numbers.randbytes(numbers.choice([1, 100, 5000]))


def behind_a_hello(numbers: random.Random, hello: bytes, said: bytes, queue: int) -> bytes:
    """Anything instead of frames."""
    return hello + numbers.randbytes(numbers.choice([1, 100, 5000]))


def frames(numbers: random.Random, hello: bytes, said: bytes, queue: int) -> bytes:
    """Frames of anything."""
    kinds = [queue] * 20 + [INPUT, OUTPUT, CREDIT, CONFIG, BYE, 7]
    out = hello
    for _ in range(numbers.randrange(50)):
        payload = numbers.randbytes(numbers.choice([0, 4, 8, 12, 16, 20, 100]))
        out += HEADER.pack(len(payload), numbers.choice(kinds)) + payload
    return out


def buffers(numbers: random.Random, hello: bytes, said: bytes, queue: int) -> bytes:
    """Buffers with good headers, and control messages with anything in them."""
    out = hello
    for _ in range(numbers.randrange(200)):
        port_id = numbers.choice([0, 1, 2, 3, 4, 1 << 31, numbers.randrange(1 << 32)])
        head = v8.HEADER.pack(port_id, numbers.randrange(2), numbers.choice([0, 1, 20, 1 << 31]))
        control = struct.pack("<HH", numbers.randrange(11), numbers.choice([0, 1, 2, 65535]))
        payload = head + control + numbers.randbytes(numbers.choice([0, 1, 4, 100, 5000]))
        out += HEADER.pack(len(payload), queue) + payload
    return out


def mangled(numbers: random.Random, hello: bytes, said: bytes, queue: int) -> bytes:
    """A conversation with some bytes changed, left out or said twice."""
    data = bytearray(said)
    for _ in range(numbers.randrange(1, 5)):
        at, size = numbers.randrange(len(data)), numbers.randrange(20)
        match numbers.randrange(3):
            case 0:
                data[at] = numbers.randrange(256)
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size]
    return bytes(data)


KINDS: tuple[Noise, ...] = (raw, behind_a_hello, frames, buffers, mangled)


def noises(numbers: random.Random, role: Role, said: bytes) -> Iterator[bytes]:
    """Yield what a peer sends in one connection after the other, until the time is over."""
    config = v8.CONFIG.pack(80, 25, 4) if role is Role.HOST else b""
    hello = Connection(role).hello(v8.FEATURES, config)
    queue = INPUT if role is Role.HOST else OUTPUT
    begun, left = trio.current_time(), BYTES
    while trio.current_time() < begun + SECONDS if LONG else left > 0:
        data = numbers.choice(KINDS)(numbers, hello, said, queue)
        left -= len(data)
        yield data


@pytest.fixture
async def talk(tmp_path: Path) -> Talk:
    return await converse(tmp_path, "")


@pytest.fixture
async def nothing_is_left() -> AsyncIterator[Callable[[], None]]:
    """Check that we hold no more at the end than at its second call, nor much more in between."""
    held: list[tuple[int, int]] = []

    def note() -> None:
        held.append(holdings())

    logging.disable(logging.WARNING)  # pytest would keep it all
    yield note
    logging.disable(logging.NOTSET)
    note()
    descriptors, memory = zip(*held[1:], strict=True)
    assert descriptors[-1] <= descriptors[0]
    assert max(memory) <= memory[0] + SLACK


def holdings() -> tuple[int, int]:
    """Our open descriptors, and our resident memory in KiB."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0])
    return len(os.listdir("/proc/self/fd")), resident


async def send(client: trio.SocketStream, data: bytes) -> None:
    """Send something, and receive anything, until the other end closes."""
    with suppress(trio.BrokenResourceError):
        await client.send_all(data)
        await client.send_eof()
    with suppress(trio.BrokenResourceError):
        async for _ in client:
            pass


@pytest.mark.limit(LIMIT)
async def test_a_host_and_guests_that_send_anything(
    talk: Talk, tmp_path: Path, numbers: random.Random, nothing_is_left: Callable[[], None]
) -> None:
    path = f"{tmp_path}/host"
    async with serving(f"unix:{path}") as (host, puppets):
        for number, data in enumerate(noises(numbers, Role.GUEST, bytes(talk.up))):
            with trio.fail_after(10):
                async with await trio.open_unix_socket(path) as client:
                    await send(client, data)
                await until(lambda: host.guest is None)
            for puppet in puppets:
                puppet.came = b""
            if number % 50 == 0:
                await assert_served(f"unix:{path}", puppets)
                nothing_is_left()
        assert not any(port.guest_connected for port in host.ports.values())
        await assert_served(f"unix:{path}", puppets)


@pytest.mark.limit(LIMIT)
async def test_a_guest_and_hosts_that_send_anything(
    talk: Talk, tmp_path: Path, numbers: random.Random, nothing_is_left: Callable[[], None]
) -> None:
    path = tmp_path / "guest"
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()

        async def say(data: bytes) -> None:
            sock, _ = await listener.accept()
            async with trio.SocketStream(sock) as client:
                await send(client, data)

        for number, data in enumerate(noises(numbers, Role.HOST, bytes(talk.down))):
            manager = PortManager()
            with trio.fail_after(10):
                async with open_background() as nursery:
                    nursery.start_soon(say, data)
                    with suppress(VconfsError):
                        async with drive(manager, open_stream(f"unix:{path}")) as driver:
                            await driver.stopped.wait()
            assert not any(port.attached or port.host_connected for port in manager.ports.values())
            if number % 50 == 0:
                nothing_is_left()

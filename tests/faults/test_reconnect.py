"""Each end survives the other: ports hang up, and come back with the same files."""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.support.threads import error_of, in_thread
from tests.support.waiting import until

from .programs import Both, Program

ends = pytest.mark.parametrize(
    "how", [signal.SIGKILL, signal.SIGTERM], ids=["the host is killed", "the host ends"]
)


async def read(fd: int, size: int = 100) -> bytes:
    return await in_thread(lambda: os.read(fd, size))


async def write(fd: int, data: bytes) -> int:
    return await in_thread(lambda: os.write(fd, data))


def polled(fd: int) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    return dict(poll.poll(0)).get(fd, 0)


@ends
async def test_ports_hang_up_and_come_back_with_their_files(both: Both, how: int) -> None:
    ports = (f"talk=unix:{both.folder}/talk", "echo=echo", f"idle=unix:{both.folder}/idle")
    host = await both.host(*ports)
    await both.mount("-o", "throttle=100ms")
    client = await trio.open_unix_socket(f"{both.folder}/talk")
    await both.until_connected()
    await both.until_connected(1)
    talk, echo = os.open(both.file(), os.O_RDWR), os.open(both.file(1), os.O_RDWR)
    before = {file.name: file.stat().st_ino for file in both.mountpoint.iterdir()}
    await client.send_all(b"last words")
    await until(lambda: both.attribute("queued") == b"10")
    async with trio.open_nursery() as nursery:

        async def blocked() -> None:
            assert await read(echo) == b""

        nursery.start_soon(blocked)
        await until(lambda: both.attribute("openers", 1))
        await host.kill(how)
    await client.aclose()

    assert await in_thread(lambda: polled(talk)) == select.POLLIN | select.POLLHUP
    assert await read(talk) == b"last words"
    assert await read(talk) == b""
    assert await in_thread(lambda: polled(talk)) == select.POLLHUP
    assert await error_of(lambda: os.write(talk, b"x")) == errno.ENOTCONN
    assert await error_of(lambda: os.write(echo, b"x")) == errno.ENOTCONN

    await both.host(*ports)
    await both.until_connected(1)
    client = await trio.open_unix_socket(f"{both.folder}/talk")
    await both.until_connected()
    assert {file.name: file.stat().st_ino for file in both.mountpoint.iterdir()} == before
    assert await write(talk, b"hello again") == 11
    assert await client.receive_some(100) == b"hello again"
    assert await write(echo, b"anew") == 4
    assert await read(echo) == b"anew"
    assert await in_thread(lambda: polled(talk)) == select.POLLOUT
    os.close(talk)
    os.close(echo)
    await client.aclose()


async def test_a_poll_wakes_when_the_host_is_gone_and_when_it_is_back(both: Both) -> None:
    host = await both.host("echo=echo")
    await both.mount()
    await both.until_connected()
    fd = os.open(both.file(), os.O_RDWR)
    with select.epoll() as epoll:
        epoll.register(fd, select.EPOLLIN | select.EPOLLHUP | select.EPOLLET)
        epoll.poll(0)
        await host.kill()
        assert await in_thread(lambda: epoll.poll(20)) == [(fd, select.EPOLLHUP)]
        epoll.modify(fd, select.EPOLLOUT | select.EPOLLET)
        epoll.poll(0)
        await both.host("echo=echo")
        events = await in_thread(lambda: epoll.poll(20))
        assert events and events[0][1] & select.EPOLLOUT
    os.close(fd)


@pytest.mark.parametrize("throttle", ["block", "1m"])
async def test_a_write_waits_for_the_host_as_long_as_for_one_that_throttles(
    both: Both, throttle: str
) -> None:
    port = f"talk=unix:{both.folder}/talk"
    host = await both.host(port)
    await both.mount("-o", f"throttle={throttle}")
    fd = os.open(both.file(), os.O_RDWR)
    async with await trio.open_unix_socket(f"{both.folder}/talk"):
        await both.until_connected()
        await host.kill()
        await until(lambda: both.attribute("host") == b"0")
    written: list[int] = []

    async def wait() -> None:
        written.append(await write(fd, b"patience"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await until(lambda: both.attribute("openers"))
        assert not written
        await both.host(port + ",cache")
    assert written == [8]
    client = await trio.open_unix_socket(f"{both.folder}/talk")
    assert await client.receive_some(100) == b"patience"
    os.close(fd)
    await client.aclose()


async def test_a_host_that_comes_back_with_other_ports(both: Both) -> None:
    host = await both.host("a=echo", "b=echo", "c=echo", "d=echo")
    await both.mount()
    gone = os.open(both.file(3), os.O_RDWR)
    await host.kill()
    host = await both.host("a=echo", "B=echo")
    await until(lambda: files(both) == [".events", ".tap", "by-name", "vcon0", "vcon1"])
    await until(lambda: sorted(os.listdir(both.mountpoint / "by-name")) == ["B", "a"])
    assert await error_of(lambda: os.read(gone, 1)) == errno.ENODEV
    assert await error_of(lambda: os.write(gone, b"x")) == errno.ENODEV
    os.close(gone)
    await host.kill()
    await both.host("a=echo", "B=echo", "C=echo")
    await until(lambda: "vcon2" in files(both))
    await until(lambda: (both.mountpoint / "by-name" / "C").exists())
    await both.until_connected(2)


def files(both: Both) -> list[str]:
    return sorted({*os.listdir(both.mountpoint), ".events", ".tap"})


@ends
async def test_once_ends_the_mount_with_one_line(both: Both, how: int) -> None:
    host = await both.host("a=echo")
    mount = await both.mount("--once")
    await host.kill(how)
    await mount.process.wait()
    await until(lambda: mount.lines)
    (*_, line) = mount.lines
    assert mount.process.returncode == 1
    assert line.startswith(f"vconfs: {both.url}: ")
    assert "Traceback" not in mount.said.decode()
    assert not os.path.ismount(both.mountpoint)


async def test_a_host_that_is_not_there_at_first(both: Both) -> None:
    mount = await both.begin_mount()
    await mount.process.wait()
    await until(lambda: mount.said)
    assert mount.process.returncode == 1
    (line,) = mount.lines
    assert f"{both.folder}/device: No such file or directory" in line
    assert not os.path.ismount(both.mountpoint)


async def test_tries_are_logged_once(both: Both) -> None:
    host = await both.host("a=echo")
    mount = await both.mount()
    await both.until_connected()
    await host.kill()
    await until(lambda: sum("trying again" in line for line in mount.lines) >= 2)
    await both.host("a=echo")
    await both.until_connected()
    assert sum("trying again" in line for line in mount.lines) == 2  # the loss, and no host


async def mount_with_client(both: Both) -> tuple[Program, trio.SocketStream]:
    """Start a guest end, and connect to the host's port `bulk`."""
    mount = await both.mount("-o", "throttle=block")
    client = await trio.open_unix_socket(f"{both.folder}/bulk")
    await both.until_connected()
    return mount, client


async def receive(client: trio.SocketStream, size: int) -> int:
    """Receive until `size` bytes have come, and return how many came."""
    received = 0
    while received < size:
        data = await client.receive_some(1 << 16)
        assert data, f"the port ended after {received} of {size} bytes"
        received += len(data)
    return received


async def test_the_host_serves_the_next_guest_after_one_vanished_inside_a_buffer(
    both: Both,
) -> None:
    await both.host(f"bulk=unix:{both.folder}/bulk", "echo=echo")
    for _ in range(3):
        mount, client = await mount_with_client(both)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, lambda: write_until_it_fails(both.file()))
            await receive(client, 3 << 20)
            await mount.kill()
        await client.aclose()
    await both.mount()
    await both.until_connected(1)
    fd = os.open(both.file(1), os.O_RDWR)
    assert await write(fd, b"still here") == 10
    assert await read(fd) == b"still here"
    os.close(fd)


async def test_what_a_killed_guest_had_accepted_is_delivered(both: Both) -> None:
    """What a `write` took is in the rings, or in the socket, which outlast the guest's process."""
    host = await both.host(f"bulk=unix:{both.folder}/bulk")
    for size in (1, 4096, 100_000):
        mount, client = await mount_with_client(both)
        os.kill(host.pid, signal.SIGSTOP)
        accepted = await in_thread(partial(write_some, both.file(), size))
        await mount.kill()
        os.kill(host.pid, signal.SIGCONT)
        assert await receive(client, accepted) == accepted
        await client.aclose()
    assert not [line for line in host.lines if "dropped" in line]


def write_some(file: Path, size: int) -> int:
    """Write no more than fits in the rings, or in a socket; return the number of bytes."""
    with file.open("wb", buffering=0) as port:
        return sum(port.write(bytes(size)) for _ in range(min(10, 100_000 // size)))


async def test_a_guest_that_is_killed_while_it_writes(both: Both) -> None:
    """Only what waited in its own memory, for a stream that is full, is lost with it."""
    waits_max = 1 << 18 if both.url.startswith("stream:") else 0
    host = await both.host(f"bulk=unix:{both.folder}/bulk")
    for size in (1, 4096, 100_000):
        mount, client = await mount_with_client(both)
        accepted: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, partial(write_and_count, both.file(), size, accepted))
            received = await receive(client, 100 * size)
            await mount.kill()
        assert len(accepted) >= 100
        lost_max = waits_max and waits_max + 2 * size  # with a frame that is begun, and one more
        received += await receive(client, sum(accepted) - lost_max - received)
        assert received <= sum(accepted) + size  # the guest was killed within a write
        await client.aclose()
    assert not [line for line in host.lines if "dropped" in line]


def write_and_count(file: Path, size: int, accepted: list[int]) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as port:
        while True:
            accepted.append(port.write(bytes(size)))


def write_until_it_fails(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as port:
        while True:
            port.write(bytes(1 << 20))

"""Which peer becomes the guest: the first that finishes its hello."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.host.vhost_user.front_end import FrontEnd, open_front_end
from vconfs.host._reception import GREETED_MAX, Reception, receive_guests
from vconfs.host.host import Host, open_host
from vconfs.host.listeners import parse_listener
from vconfs.host.port import HostPortSpec
from vconfs.protocol import v8
from vconfs.protocol.stream import Connection, Hello, Role
from vconfs.system.tasks import open_background
from vconfs.testing import Puppet


@asynccontextmanager
async def listening(folder: Path, scheme: str) -> AsyncIterator[Host]:
    specs = [HostPortSpec(b"port", Puppet())]
    async with open_host(specs) as host, open_background() as nursery:
        await nursery.start(parse_listener(f"{scheme}:{folder}/s").serve, host)
        yield host


async def say_hello(sock: trio.SocketStream) -> None:
    connection = Connection(Role.GUEST)
    await sock.send_all(connection.hello(v8.FEATURES))
    while (event := connection.next_event()) is None:
        connection.feed(await sock.receive_some())
    assert isinstance(event, Hello)
    await sock.send_all(connection.answer())


@pytest.mark.parametrize("said", [b"", b"\x89VCON"])
@pytest.mark.expect_log("guest lost", "trying again")
async def test_silent_streams_keep_no_guest_waiting(tmp_path: Path, said: bytes) -> None:
    with trio.fail_after(5):
        async with listening(tmp_path, "stream:unix") as host, AsyncExitStack() as stack:
            for _ in range(GREETED_MAX - 1):
                silent = await trio.open_unix_socket(f"{tmp_path}/s")
                await stack.enter_async_context(silent)
                await trio.testing.wait_all_tasks_blocked()  # few can wait to be let in
                await silent.send_all(said)
            guest = await stack.enter_async_context(await trio.open_unix_socket(f"{tmp_path}/s"))
            await say_hello(guest)
            while host.guest is None:
                await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.parametrize("requests", [0, 1])
async def test_silent_front_ends_keep_no_guest_waiting(tmp_path: Path, requests: int) -> None:
    with trio.fail_after(5):
        async with listening(tmp_path, "vhost-user") as host, AsyncExitStack() as stack:
            for _ in range(GREETED_MAX - 1):
                silent: FrontEnd = await stack.enter_async_context(open_front_end(tmp_path / "s"))
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(requests):
                    await silent.ask(silent.codec.set_owner())
            front = await stack.enter_async_context(open_front_end(tmp_path / "s"))
            await front.start()
            while host.guest is None:
                await trio.testing.wait_all_tasks_blocked(0.001)


async def test_the_next_front_end_is_served_when_the_guest_has_left(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with listening(tmp_path, "vhost-user") as host:
            async with open_front_end(tmp_path / "s") as first:
                await first.start()
                first_guest = host.guest
                async with open_front_end(tmp_path / "s") as second, trio.open_nursery() as nursery:
                    nursery.start_soon(second.start)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    assert host.guest is first_guest
                    first.sock.close()
                assert host.guest is not first_guest


async def test_one_guest_at_a_time_and_no_other_is_let_in_meanwhile() -> None:
    reception = Reception()
    let_in, guests, most = 0, [0], 0
    door = trio.Semaphore(0)
    hello, leave = trio.Event(), trio.Event()

    async def serve_one() -> bool:
        nonlocal let_in, most
        await reception.let_in(door.acquire)
        let_in += 1
        await hello.wait()
        async with reception.as_guest():
            guests[0] += 1
            most = max(most, guests[0])
            await leave.wait()
            guests[0] -= 1
        return let_in < 8

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive_guests, serve_one, 4)
        for _ in range(6):
            door.release()
        await trio.testing.wait_all_tasks_blocked()
        assert let_in == 4
        hello.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (let_in, most) == (4, 1)
        leave.set()
        await trio.testing.wait_all_tasks_blocked()
        assert let_in == 6
        for _ in range(2):
            door.release()
    assert (let_in, most) == (8, 1)

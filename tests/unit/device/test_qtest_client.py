"""The client of QEMU's qtest socket, against a peer that answers as it likes."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from vconfs.device.qtest._qtest_client import QtestClient
from vconfs.errors import VconfsError
from vconfs.system.tasks import open_background

READ = b"readl 0x10\n"


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[QtestClient, trio.SocketStream]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours:
        async with (
            trio.SocketStream(trio.socket.from_stdlib_socket(theirs)) as peer,
            open_background() as nursery,
        ):
            client = QtestClient(ours)
            nursery.start_soon(client.run)
            yield client, peer


async def fails(client: QtestClient, message: str) -> None:
    with pytest.raises(VconfsError, match=message):
        await client.call(READ)


async def test_answers_come_in_order() -> None:
    async with connected() as (client, peer), trio.open_nursery() as nursery:
        got: list[int] = []

        async def call() -> None:
            got.append(await client.call(READ))

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        client.post(b"writel 0x10 0x5\n")
        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert await peer.receive_some() == READ + b"writel 0x10 0x5\n" + READ
        await peer.send_all(b"OK 0x1\nIRQ raise 20\nOK\nOK ")
        await client.wait_interrupt()
        await peer.send_all(b"0x2\n")
        await trio.testing.wait_all_tasks_blocked()
        assert got == [1, 2]


async def test_a_caller_that_gave_up_does_not_shift_the_answers() -> None:
    async with connected() as (client, peer):
        with trio.move_on_after(0):
            await client.call(READ)
        await peer.send_all(b"OK 0x1\n")
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_all, b"OK 0x2\n")
            assert await client.call(READ) == 2


async def test_a_refused_command() -> None:
    async with connected() as (client, peer), trio.open_nursery() as nursery:
        nursery.start_soon(fails, client, "QEMU refuses a command: Unknown command")
        await peer.receive_some()
        await peer.send_all(b"FAIL Unknown command\n")


@pytest.mark.parametrize(
    ("sent", "message"),
    [(b"HELLO\n", "not a line of qtest: b'HELLO'"), (b"OK\nOK\n", "an answer to no command")],
)
async def test_a_peer_that_does_not_speak_qtest(sent: bytes, message: str) -> None:
    async with connected() as (client, peer):
        client.post(READ)
        await peer.send_all(sent)
        with pytest.raises(VconfsError, match=message):
            await client.wait_interrupt()
        await fails(client, message)
        client.post(READ)  # harmless


async def test_a_peer_that_leaves() -> None:
    async with connected() as (client, peer), trio.open_nursery() as nursery:
        nursery.start_soon(fails, client, "QEMU is gone")
        await peer.receive_some()
        await peer.aclose()


async def test_a_peer_that_never_answers(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, _):
        await fails(client, "QEMU has not answered in 5 s")


async def test_a_peer_that_reads_nothing() -> None:
    async with connected() as (client, _):
        for _ in range(200_000):
            client.post(READ)
        await fails(client, "QEMU takes no commands")


async def test_a_peer_that_reads_late() -> None:
    async with connected() as (client, peer):
        count = 50_000
        for _ in range(count):
            client.post(READ)
        got = 0
        with trio.fail_after(20):
            while got < count * len(READ):
                got += len(await peer.receive_some())
        assert got == count * len(READ)

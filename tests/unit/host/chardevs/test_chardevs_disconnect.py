"""Hanging up the client at the far side of a port, so that the next one can connect."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.host.chardevs.chardev_port import FakePort, serving
from tests.unit.host.chardevs.test_chardevs_programs import a_line
from vconfs.host.chardevs import programs


def hang_up(port: FakePort) -> None:
    assert port.hang_up_client is not None
    port.hang_up_client()


@pytest.mark.parametrize("kind", ["unix", "seqpacket", "tcp"])
@pytest.mark.parametrize("throttled", [False, True])
async def test_a_client_sees_end_of_file_and_the_next_one_comes(
    tmp_path: Path, kind: str, throttled: bool, unused_tcp_port: int
) -> None:
    path = f"{tmp_path}/s"
    family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
    address: object = ("127.0.0.1", unused_tcp_port) if kind == "tcp" else path
    place = f"127.0.0.1:{unused_tcp_port}" if kind == "tcp" else path
    packets = socket.SOCK_SEQPACKET if kind == "seqpacket" else socket.SOCK_STREAM
    async with serving(f"{kind}:{place}") as port:
        assert port.hang_up_client is None
        for _ in range(2):
            with trio.socket.socket(family, packets) as client:
                await client.connect(address)
                await port.until_connected()
                port.throttle(throttled)
                await client.send(b"stuck" if throttled else b"through")
                await trio.testing.wait_all_tasks_blocked()
                hang_up(port)
                assert await client.recv(1) == b""
                await port.until_connected(False)
                assert port.hang_up_client is None
                port.throttle(False)
        assert port.received == (b"" if throttled else b"throughthrough")


async def test_a_peer_of_connect_sees_a_hang_up_and_a_new_connection(tmp_path: Path) -> None:
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(f"{tmp_path}/s")
        listener.listen()
        async with serving(f"connect:{tmp_path}/s") as port:
            for _ in range(2):
                with (await listener.accept())[0] as peer:
                    await port.until_connected()
                    hang_up(port)
                    assert await peer.recv(1) == b""


async def test_programs_at_a_removed_pty_keep_a_dead_one(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    async with serving(f"pty:{link}") as port:
        dead = os.open(link, os.O_RDWR | os.O_NOCTTY)
        await port.until_connected()
        hang_up(port)
        await port.until_connected(False)
        await trio.testing.wait_all_tasks_blocked()
        poll = select.poll()
        poll.register(dead, 0)
        assert poll.poll(0)[0][1] & select.POLLHUP
        slave = os.open(link, os.O_RDWR | os.O_NOCTTY)
        await port.until_connected()
        os.write(slave, b"the next")
        await port.until_received(b"the next")
        os.close(dead)
        await trio.testing.wait_all_tasks_blocked()
        assert port.connected
        os.close(slave)
        await port.until_connected(False)
    assert not link.is_symlink()


async def test_a_program_is_ended_and_runs_again_at_the_next_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(programs, "_PATIENCE", 0.1)
    async with serving("exec:echo $$; trap '' TERM; sleep 100 & wait; cat") as port:
        for _ in range(2):
            port.open()
            program = os.pidfd_open(int(await a_line(port)))
            hang_up(port)
            await trio.lowlevel.wait_readable(program)
            os.close(program)
            await port.until(lambda: port.hang_ups > 0)
            assert port.connected
            assert port.hang_up_client is None
            port.close()
            await port.until(lambda: not port.queue)
            port.sent.clear()
            port.hang_ups = 0

"""A stream that is cut at every byte of a conversation: both ends keep what was whole, and live."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.support.waiting import until
from vconfs.device.stream import open_stream
from vconfs.errors import VconfsError
from vconfs.guest.driver import drive
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.system.tasks import open_background

from .conversation import DOWN, UP, Talk, assert_served, converse, serving


@pytest.fixture(params=["", ",window=1024"], ids=["plain", "window"])
async def talk(request: pytest.FixtureRequest, tmp_path: Path) -> Talk:
    with trio.fail_after(20):
        return await converse(tmp_path, request.param)


@pytest.mark.expect_log("guest lost", "trying again")
async def test_what_a_guest_says_cut_at_every_byte(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "host"
    async with serving(f"unix:{path}") as (host, puppets):
        for end in range(len(talk.up) + 1):
            for puppet in puppets:
                puppet.came = b""
            async with await trio.open_unix_socket(path) as client:
                await client.send_all(talk.up[:end])
                await client.send_eof()
                with suppress(trio.BrokenResourceError):
                    while await client.receive_some():
                        pass
            await until(lambda: host.guest is None)
            for port_id, port in host.ports.items():
                assert UP[port_id].startswith(puppets[port_id].came)
                assert not port.guest_connected
                assert not port.guest_throttled
            heard = puppets[0].came
            if end % 100 == 0:
                await assert_served(f"unix:{path}", puppets)
        assert heard == UP[0]


@pytest.mark.expect_log("device lost", "guest lost")
async def test_what_a_host_says_cut_at_every_byte(talk: Talk, tmp_path: Path) -> None:
    path, manager = tmp_path / "guest", PortManager()
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()
        for end in range(len(talk.down) + 1):
            async with open_background() as nursery:
                nursery.start_soon(say, listener, talk.down[:end])
                with suppress(VconfsError):
                    async with drive(manager, open_stream(f"unix:{path}")) as driver:
                        await driver.stopped.wait()
                        assert driver.reason
            heard = {port_id: everything(port) for port_id, port in manager.ports.items()}
            for port_id, port in manager.ports.items():
                assert not port.attached
                assert not port.host_connected
                assert port_id not in DOWN or DOWN[port_id].startswith(heard[port_id])
        assert heard[0] == DOWN[0]
    await assert_comes_back(manager, tmp_path)


async def say(listener: trio.socket.SocketType, data: bytearray) -> None:
    sock, _ = await listener.accept()
    async with trio.SocketStream(sock) as client:
        await client.send_all(data)
        await client.send_eof()
        async for _ in client:
            pass


def everything(port: Port) -> bytes:
    """All that waits in a port, up to the end of file."""
    data = b""
    while pieces := port.read_nowait(1 << 16):
        data += b"".join(pieces)
    return data


async def assert_comes_back(manager: PortManager, folder: Path) -> None:
    ports: Mapping[int, Port] = manager.ports
    async with serving(f"unix:{folder}/real") as (_, puppets):
        async with drive(manager, open_stream(f"unix:{folder}/real")):
            await until(lambda: all(ports[port_id].host_connected for port_id in UP))
            for port_id, puppet in enumerate(puppets):
                await puppet.port.send(b"anew")
                await until(lambda port_id=port_id: ports[port_id].queued)  # type: ignore[misc]
                assert b"".join(ports[port_id].read_nowait(10)) == b"anew"

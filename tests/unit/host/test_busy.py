"""A host end that serves a guest says so to the next one at once."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.waiting import until
from vconfs.errors import VconfsError
from vconfs.guest.connection import Connection
from vconfs.guest.devices import parse_device
from vconfs.guest.ports import PortManager
from vconfs.host.host import Host, open_host
from vconfs.host.listeners import parse_listener
from vconfs.host.port import HostPortSpec
from vconfs.protocol import stream, v8
from vconfs.protocol.stream import Role
from vconfs.system.tasks import open_background
from vconfs.testing import Puppet

pytestmark = pytest.mark.expect_log(
    "guest lost", "device lost", "guest refused: the host end serves another guest"
)

BUSY = "the host end serves another guest"


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[Host]:
    async with open_host([HostPortSpec(b"port", Puppet())]) as host, open_background() as nursery:
        await nursery.start(parse_listener(url).serve, host)
        yield host


@asynccontextmanager
async def connected(url: str, patience: float = 0.0) -> AsyncIterator[PortManager]:
    manager = PortManager()
    async with open_background() as nursery:
        connection = Connection(parse_device(url), manager, patience=patience)
        await nursery.start(connection.run)
        yield manager


@pytest.mark.parametrize(
    ("url", "message", "seconds"),
    [
        ("stream:unix:{}/s", BUSY, 2),
        ("stream:tcp:127.0.0.1:7431", BUSY, 2),
        # vhost-user has no words for it: what the second one asks is not read.
        ("vhost-user:{}/s", "it serves another front-end", 5),
    ],
)
async def test_the_second_guest_is_told_soon(
    tmp_path: Path, url: str, message: str, seconds: float
) -> None:
    url = url.format(tmp_path)
    async with listening(url) as host, connected(url) as first:
        guest = host.guest
        with trio.fail_after(seconds), pytest.raises(VconfsError, match=message):
            async with connected(url):
                pass
        assert host.guest is guest
        assert first.ports[0].attached


async def test_the_second_guest_is_served_when_the_first_has_just_left(tmp_path: Path) -> None:
    url = f"stream:unix:{tmp_path}/s"
    async with listening(url):
        for _ in range(4):
            async with connected(url) as manager:
                assert manager.ports[0].attached


async def test_a_guest_that_waits_for_a_host_gets_its_turn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"stream:unix:{tmp_path}/s"
    async with listening(url), trio.open_nursery() as nursery:
        served = trio.Event()

        async def second() -> None:
            async with connected(url, patience=15) as manager:
                assert manager.ports[0].attached
                served.set()

        async with connected(url):
            nursery.start_soon(second)
            await until(lambda: f"guest refused: {BUSY}" in caplog.text)
            assert not served.is_set()
        await served.wait()


async def test_a_guest_that_has_a_name_is_served_by_an_older_host_end(tmp_path: Path) -> None:
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(f"{tmp_path}/s")
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve_as_version_2_did, listener)
            async with connected(f"stream:unix:{tmp_path}/s") as manager:
                assert list(manager.ports) == [0, 1]
            nursery.cancel_scope.cancel()


async def _serve_as_version_2_did(listener: trio.socket.SocketType) -> None:
    sock, _ = await listener.accept()
    host = stream.Connection(Role.HOST)
    await sock.send(host.hello(v8.FEATURES, v8.CONFIG.pack(0, 0, 2)))
    with sock:
        while data := await sock.recv(1 << 16):
            host.feed(data)
            while (event := host.next_event()) is not None:
                assert isinstance(event, stream.Hello | stream.Frame | stream.Closed)
                if isinstance(event, stream.Hello):
                    await sock.send(host.answer())

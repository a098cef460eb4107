"""The kernel's report if the server of a unix socket has accepted a connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support import needs
from vconfs.system import unix_accepts
from vconfs.system.unix_accepts import is_accepted, wait_accepted


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that listens."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen(1)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if is_accepted(ours) is None:
                needs.cannot_run("the kernel has no report of unix sockets")
        yield listener


@pytest.fixture
async def client(server: socket.socket) -> trio.socket.SocketType:
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.connect(server.getsockname())
    return sock


async def test_a_connection_is_accepted_when_the_server_has_it(
    server: socket.socket, client: trio.socket.SocketType
) -> None:
    with client:
        assert is_accepted(client) is False
        with closing(server.accept()[0]):
            assert is_accepted(client) is True
        assert is_accepted(client) is False


async def test_waiting_ends_when_the_server_accepts(
    server: socket.socket, client: trio.socket.SocketType
) -> None:
    outcomes = []

    async def wait() -> None:
        outcomes.append(await wait_accepted(client, 20))

    with client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert outcomes == []
            accepted = server.accept()[0]
        assert outcomes == [True]
        accepted.close()


async def test_a_server_that_does_not_accept_has_a_limit(
    server: socket.socket,
    client: trio.socket.SocketType,
    autojump_clock: trio.testing.MockClock,
) -> None:
    with client:
        begun = trio.current_time()
        assert not await wait_accepted(client, 5)
        assert 5 <= trio.current_time() - begun < 6


@pytest.mark.parametrize("last", [b"", b"busy"])
async def test_a_connection_that_is_closed_at_once_counts_if_it_has_sent_something(
    server: socket.socket, client: trio.socket.SocketType, last: bytes
) -> None:
    with client:
        accepted = server.accept()[0]
        accepted.sendall(last)
        accepted.close()
        assert await wait_accepted(client, 5) is bool(last)


async def test_without_the_kernels_report_a_connection_counts(
    server: socket.socket, client: trio.socket.SocketType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(inode: int) -> int:
        raise PermissionError

    for peer in (refuse, lambda inode: None):
        monkeypatch.setattr(unix_accepts, "_peer_of", peer)
        assert is_accepted(client) is None
        assert await wait_accepted(client, 5)
    client.close()

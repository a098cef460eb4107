"""Clients of socket chardevs that are late, slow, half gone, gone, or too many."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from tests.support.waiting import until
from tests.unit.host.chardevs.chardev_port import (
    FakePort,
    descriptors,
    serving,
    until_only_open,
)
from vconfs.errors import VconfsError
from vconfs.host.chardev import parse_chardev
from vconfs.host.chardevs import tcp
from vconfs.host.chardevs.sockets import Unix
from vconfs.host.port import HostPort, HostPortSpec
from vconfs.protocol.events import Buffer
from vconfs.system.tasks import open_background

PIECE = bytes(range(256)) * 256
#: From <asm-generic/socket.h>: root may have more than net.core.wmem_max.
_SO_SNDBUFFORCE = 32


async def connected(path: str, kind: int = socket.SOCK_STREAM) -> trio.socket.SocketType:
    client = trio.socket.socket(socket.AF_UNIX, kind)
    await client.connect(path)
    return client


async def fill(client: trio.socket.SocketType) -> bytes:
    """Send until nothing more is taken, and tell what was."""
    sent = b""
    while True:
        with trio.move_on_after(0.2):  # there is no reader: this is the time that it gets
            sent += PIECE[: await client.send(PIECE)]
            continue
        return sent


async def received(client: trio.socket.SocketType, size: int) -> bytes:
    """Receive this many bytes."""
    got = b""
    while len(got) < size:
        got += await client.recv(size - len(got))
    return got


# --- unix ---------------------------------------------------------------------------------


@pytest.mark.expect_log("could not be delivered")
async def test_all_that_a_client_sent_arrives_when_it_can_receive_no_more(tmp_path: Path) -> None:
    async with serving(f"unix:{tmp_path}/s") as port:
        port.throttle(True)
        client = await connected(f"{tmp_path}/s")
        said = await fill(client)
        client.close()
        port.write(b"for the next one")  # finds out that the client has gone
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert list(port.queue) == [b"for the next one"]
        assert port.connected
        port.throttle(False)
        await port.until_connected(False)
        assert port.received == said


async def test_much_data_is_sent_at_once_and_little_is_gathered(tmp_path: Path) -> None:
    async with serving(f"unix:{tmp_path}/s") as port:
        client = await connected(f"{tmp_path}/s")
        await port.until_connected()
        much, little = PIECE[:8192], b"little"
        port.write(much)
        assert os.read(client.fileno(), 1 << 20) == much
        port.write(little)
        assert list(port.queue) == [little]
        port.write(much)  # must not overtake
        assert await received(client, len(little + much)) == little + much
        client.close()


async def test_a_client_that_reads_in_small_steps_gets_everything_in_order(tmp_path: Path) -> None:
    async with serving(f"unix:{tmp_path}/s") as port:
        client = await connected(f"{tmp_path}/s")
        await port.until_connected()
        numbers = Random(3)
        said, got = [], b""
        for number in range(300):
            said.append(bytes([number & 0xFF]) * numbers.choice((1, 100, 5000, 70_000)))
            port.write(said[-1])
            if numbers.random() < 0.5:
                got += await client.recv(numbers.choice((10, 3000, 100_000)))
        everything = b"".join(said)
        assert got + await received(client, len(everything) - len(got)) == everything
        client.close()


async def test_more_comes_while_a_client_takes_nothing(tmp_path: Path) -> None:
    spec = HostPortSpec(b"port", parse_chardev(f"unix:{tmp_path}/s"))
    port = HostPort(0, spec)
    async with open_background() as nursery:
        await nursery.start(spec.chardev.run, port)
        client = await connected(f"{tmp_path}/s")
        await until(lambda: port.connected)
        pieces = [bytes([number & 0xFF]) * 1000 for number in range(1000)]
        for piece in pieces:
            port.feed(memoryview(piece), len(piece))
            await trio.lowlevel.checkpoint()
        assert port.queued
        assert await received(client, 1_000_000) == b"".join(pieces)
        assert port.delivered_bytes == 1_000_000
        client.close()
        await until(lambda: not port.connected)


async def test_what_a_slow_client_does_not_take_stays_in_the_port(tmp_path: Path) -> None:
    async with serving(f"unix:{tmp_path}/s") as port:
        client = await connected(f"{tmp_path}/s")
        await port.until_connected()
        for _ in range(200):
            port.write(PIECE)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(port.queue) > 150
        got = 0
        while got < 200 * len(PIECE):
            got += len(await client.recv(1 << 20))
        client.close()


@pytest.mark.parametrize("kind", ["unix", "seqpacket"])
@pytest.mark.expect_log("could not be delivered")
async def test_unread_data_of_a_client_is_for_the_next_one(tmp_path: Path, kind: str) -> None:
    how = socket.SOCK_SEQPACKET if kind == "seqpacket" else socket.SOCK_STREAM
    async with serving(f"{kind}:{tmp_path}/s") as port:
        first = socket.socket(socket.AF_UNIX, how)
        first.setblocking(False)
        first.connect(f"{tmp_path}/s")
        await port.until_connected()
        pieces = [bytes([number]) * 50_000 for number in range(100)]
        for piece in pieces:
            port.write(piece)
        await trio.testing.wait_all_tasks_blocked(0.05)
        got = b""
        with first, suppress(BlockingIOError):
            while True:
                got += first.recv(1 << 20)
        await port.until_connected(False)
        client = await connected(f"{tmp_path}/s", how)
        while len(got) < 100 * 50_000:
            got += await client.recv(1 << 20)
        assert got == b"".join(pieces)
        client.close()


async def test_half_closed_client_gets_everything_and_is_missed(tmp_path: Path) -> None:
    async with serving(f"unix:{tmp_path}/s") as port:
        client = await connected(f"{tmp_path}/s")
        await client.send(b"question")
        client.shutdown(socket.SHUT_WR)
        await port.until_received(b"question")
        await trio.testing.wait_all_tasks_blocked()
        for answer in (b"one", b"two"):
            port.write(answer)
            assert await client.recv(100) == answer
        client.close()
        await port.until_connected(False)


async def test_a_client_that_vanishes_amid_both_ways(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(f"unix:{tmp_path}/s") as port:
        client = await connected(f"{tmp_path}/s")
        await client.send(b"hello")
        for _ in range(100):
            port.write(PIECE)
        await client.recv(1000)
        client.close()  # with data unread: the other side gets a reset
        await port.until_connected(False)
        assert port.received == b"hello"
        again = await connected(f"{tmp_path}/s")
        await again.recv(1000)
        again.close()
    assert "guest data could not be delivered" in caplog.text


async def test_a_socket_that_took_the_place_of_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(f"unix:{path}"):
        path.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
    assert path.is_socket()
    other.close()


@pytest.mark.parametrize("kind", ["unix", "seqpacket"])
async def test_errors_when_a_socket_cannot_be_made(kind: str, tmp_path: Path) -> None:
    file, dangling = tmp_path / "file", tmp_path / "dangling"
    file.touch()
    dangling.symlink_to("nowhere")
    table = {
        f"{file}/s": f"{file}/s: {file} is not a folder: choose another path",
        f"{tmp_path}/no/s": f"{tmp_path}/no/s: the folder {tmp_path}/no does not exist: "
        "make it first",
        f"{dangling}": f"{dangling} exists: choose another path, or remove it",
        f"{file}": f"{file} exists and is not a socket: choose another path, or remove it",
    }
    for path, message in table.items():
        with pytest.raises(VconfsError) as caught:
            async with serving(f"{kind}:{path}"):
                pass
        assert str(caught.value) == message


async def test_a_path_too_long_that_was_not_parsed(tmp_path: Path) -> None:
    with pytest.raises(VconfsError, match="too long"):
        async with serving(Unix(f"{tmp_path}/" + "x" * 108)):
            pass


@pytest.mark.parametrize("kind", ["unix", "connect", "seqpacket", "file", "pipe", "pty", "exec"])
def test_no_nul_in_an_argument(kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind}: a (path|command) cannot contain a NUL"):
        parse_chardev(f"{kind}:a\0b")


# --- seqpacket ----------------------------------------------------------------------------


async def test_packets_of_a_client_are_sent_one_by_one(tmp_path: Path) -> None:
    async with serving(f"seqpacket:{tmp_path}/s") as port:
        client = await connected(f"{tmp_path}/s", socket.SOCK_SEQPACKET)
        packets = [b"one", b"", b"two", PIECE, b""]
        for packet in packets:
            await client.send(packet)
        await client.send(b"last")
        client.close()
        await port.until(lambda: port.connects == 1 and not port.connected)
        assert port.sent == [b"one", b"two", PIECE, b"last"]


async def test_packets_after_a_half_close(tmp_path: Path) -> None:
    async with serving(f"seqpacket:{tmp_path}/s") as port:
        client = await connected(f"{tmp_path}/s", socket.SOCK_SEQPACKET)
        await client.send(b"question")
        client.shutdown(socket.SHUT_WR)
        await port.until_received(b"question")
        port.write(b"")  # is no packet: the client would take it for the end
        port.write(b"answer")
        assert await client.recv(100) == b"answer"
        client.close()
        await port.until_connected(False)


async def test_packets_that_do_not_fit_are_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    huge = 5 << 20
    async with serving(f"seqpacket:{tmp_path}/s") as port:
        client = await connected(f"{tmp_path}/s", socket.SOCK_SEQPACKET)
        await port.until_connected()
        for message in (bytes(huge), bytes(huge), b"fits"):
            port.write(message)
        assert await client.recv(100) == b"fits"
        assert port.counters.dropped == 2 * huge
        client.close()
    assert caplog.text.count("is too large") == 1


@pytest.mark.expect_log("is too large")
async def test_a_packet_of_a_client_that_does_not_fit(tmp_path: Path) -> None:
    size = (1 << 20) + 1
    async with serving(f"seqpacket:{tmp_path}/s") as port:
        client = await connected(f"{tmp_path}/s", socket.SOCK_SEQPACKET)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * size)
        if not os.geteuid():
            client.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * size)
        if client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * size:
            client.close()
            pytest.skip("net.core.wmem_max is too small for so large a packet")
        await client.send(bytes(size))
        await client.send(bytes(size - 1))
        await port.until(lambda: bool(port.sent))
        assert [len(data) for data in port.sent] == [size - 1]
        assert port.counters.dropped == size
        client.close()


# --- connect ------------------------------------------------------------------------------


async def test_connect_pauses_before_a_peer_that_hangs_up_at_once(tmp_path: Path) -> None:
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(f"{tmp_path}/s")
    listener.listen()
    with listener:
        async with serving(f"connect:{tmp_path}/s"):
            begun = trio.current_time()
            for _ in range(4):
                (await listener.accept())[0].close()
            assert trio.current_time() - begun >= 0.05 + 0.1 + 0.2


@pytest.mark.expect_log("trying again")
async def test_connect_is_not_connected_while_its_peer_accepts_no_client(tmp_path: Path) -> None:
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(f"{tmp_path}/s")
    listener.listen(0)
    first = await connected(f"{tmp_path}/s")  # all that the backlog holds
    with listener, first:
        async with serving(f"connect:{tmp_path}/s") as port:
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert not port.connects
            (await listener.accept())[0].close()
            with (await listener.accept())[0] as peer:
                await port.until_connected()
                await peer.send(b"now")
                await port.until_received(b"now")


async def test_connect_to_a_socket_that_comes_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("vconfs.system.backoff.Pauses.next", lambda self: 1000.0)
    path = f"{tmp_path}/s"
    async with serving(f"connect:{path}") as port:
        await trio.testing.wait_all_tasks_blocked()
        with trio.socket.socket(socket.AF_UNIX) as listener:
            await listener.bind(path)
            listener.listen()
            assert port.reopen is not None
            port.reopen()  # it tries at once
            with (await listener.accept())[0] as peer:
                await peer.send(b"now")
                await port.until_received(b"now")
    assert [record.getMessage() for record in caplog.records] == [
        f"port 3: {path}: No such file or directory; trying again",
        f"port 3: connected to {path}",
    ]


@pytest.mark.parametrize("kind", ["unix", "seqpacket", "tcp"])
@pytest.mark.expect_log("trying again")
async def test_a_system_short_of_memory_and_descriptors_keeps_the_client(
    kind: str, tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, writev, dup = trio._socket._SocketType.send, os.writev, os.dup
    failures: list[int] = []

    def fail_twice(code: int) -> None:
        if failures.count(code) < 2:
            failures.append(code)
            raise OSError(code, os.strerror(code))

    async def send_later(sock: trio._socket._SocketType, data: bytes) -> int:
        fail_twice(105)
        return await send(sock, data)

    def writev_later(descriptor: int, pieces: Sequence[Buffer]) -> int:
        fail_twice(105)
        return writev(descriptor, pieces)

    def dup_later(descriptor: int) -> int:
        fail_twice(24)
        return dup(descriptor)

    where = f"127.0.0.1:{unused_tcp_port}" if kind == "tcp" else f"{tmp_path}/s"
    how = socket.SOCK_SEQPACKET if kind == "seqpacket" else socket.SOCK_STREAM
    async with serving(f"{kind}:{where}") as port:
        monkeypatch.setattr("trio._socket._SocketType.send", send_later)
        monkeypatch.setattr("vconfs.host.chardevs._client.os.writev", writev_later)
        monkeypatch.setattr("vconfs.system.edges.os.dup", dup_later)
        client = await (tcp_client(unused_tcp_port) if kind == "tcp" else connected(where, how))
        with client:
            await port.until_connected()
            client.shutdown(socket.SHUT_WR)
            port.write(b"kept")
            assert await client.recv(100) == b"kept"
            await until(lambda: failures.count(24) == 2)
            assert failures.count(105) == 2 and port.connected
        await port.until_connected(False)


# --- tcp ----------------------------------------------------------------------------------


async def tcp_client(service: int, host: str = "127.0.0.1") -> trio.socket.SocketType:
    return (await trio.open_tcp_stream(host, service)).socket


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


class BothAddresses(trio.abc.HostnameResolver):
    """Knows one name, which has an address of each kind that this machine has."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]
        assert host == b"localhost"
        newer = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))]
        return [
            *(newer if has_ipv6() else []),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


#: What a host means, where there is IPv6 and where there is not.
_MEANINGS = {"localhost": ["127.0.0.1", "::1"], "": ["127.0.0.1", "::1"], "[::1]": ["::1"]}
_OLD_MEANINGS = {"localhost": ["127.0.0.1"], "": ["127.0.0.1"]}


@pytest.mark.parametrize(
    ("host", "addresses"), (_MEANINGS if has_ipv6() else _OLD_MEANINGS).items()
)
async def test_tcp_listens_at_all_addresses_of_a_name(
    host: str, addresses: list[str], unused_tcp_port: int
) -> None:
    trio.socket.set_custom_hostname_resolver(BothAddresses())
    async with serving(f"tcp:{host}:{unused_tcp_port}") as port:
        for address in addresses:
            client = await tcp_client(unused_tcp_port, address)
            await client.send(b"hello")
            await port.until_received(b"hello")
            client.close()
            await port.until_connected(False)
            port.sent.clear()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("a" * 70 + ".b:80", "cannot listen on " + "a" * 70 + ".b:80: this is not a host name"),
        ("192.0.2.1:80", "cannot listen on 192.0.2.1:80: Cannot assign requested address: "
         "choose an address of this machine"),
    ],
)  # fmt: skip
async def test_what_tcp_cannot_listen_on(where: str, message: str) -> None:
    with pytest.raises(VconfsError) as caught:
        async with serving(f"tcp:{where}"):
            pass
    assert str(caught.value) == message


async def test_a_tcp_port_that_is_taken(unused_tcp_port: int) -> None:
    where = f"127.0.0.1:{unused_tcp_port}"
    async with serving(f"tcp:{where}"):
        with pytest.raises(VconfsError) as caught:
            async with serving(f"tcp:{where}"):
                pass
    message = f"cannot listen on {where}: Address already in use: choose another port"
    assert str(caught.value) == message


@pytest.mark.parametrize("service", ["0", "65536", "-1", "+1", "１", "9" * 5000, ""])
def test_wrong_tcp_ports(service: str) -> None:
    with pytest.raises(ValueError, match="tcp needs a host and a port: tcp:HOST:PORT, not "):
        parse_chardev(f"tcp:host:{service}")


async def test_a_tcp_client_that_closes_is_missed_at_once(unused_tcp_port: int) -> None:
    async with serving(f"tcp:127.0.0.1:{unused_tcp_port}") as port:
        client = await tcp_client(unused_tcp_port)
        await client.send(b"bye")
        client.close()
        with trio.fail_after(20):
            await port.until(lambda: port.connects == 1 and not port.connected)
        assert port.received == b"bye"


async def test_a_tcp_client_that_is_reset(unused_tcp_port: int) -> None:
    async with serving(f"tcp:127.0.0.1:{unused_tcp_port}") as port:
        client = await tcp_client(unused_tcp_port)
        await port.until_connected()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await port.until_connected(False)


async def half_closed_and_next(port: FakePort, service: int) -> list[trio.socket.SocketType]:
    first = await tcp_client(service)
    await first.send(b"question")
    first.shutdown(socket.SHUT_WR)
    await port.until_received(b"question")
    return [first, await tcp_client(service)]


async def test_the_next_tcp_client_waits_for_one_that_still_listens(unused_tcp_port: int) -> None:
    async with serving(f"tcp:127.0.0.1:{unused_tcp_port}") as port:
        first, second = await half_closed_and_next(port, unused_tcp_port)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert port.connected and port.connects == 1
        port.write(b"answer")
        assert await first.recv(100) == b"answer"
        first.close()
        await port.until(lambda: port.connects == 2)
        second.close()


async def test_a_half_closed_tcp_client_elsewhere_goes_when_another_comes(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "_peer_inode", lambda sock: None)
    async with serving(f"tcp:127.0.0.1:{unused_tcp_port}") as port:
        first, second = await half_closed_and_next(port, unused_tcp_port)
        await port.until(lambda: port.connects == 2)
        first.close()
        second.close()


# --- all of them --------------------------------------------------------------------------


async def test_no_room_for_a_client(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    failures = 3

    class Full(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise OSError(24, os.strerror(24))
            return super().accept()

    async with AsyncExitStack() as stack:
        with monkeypatch.context() as full:
            full.setattr("vconfs.host.chardevs.sockets.socket.socket", Full)
            port = await stack.enter_async_context(serving(f"unix:{tmp_path}/s"))
        with closing(await connected(f"{tmp_path}/s")) as client:
            await client.send(b"at last")
            await port.until_received(b"at last")
    assert [record.getMessage() for record in caplog.records] == [
        "clients have to wait: Too many open files; trying again",
        "clients are let in again",
    ]


@pytest.mark.parametrize("kind", ["unix", "seqpacket", "tcp"])
async def test_cancelled_amid_both_ways(
    kind: str, tmp_path: Path, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    before = descriptors()
    where = f"127.0.0.1:{unused_tcp_port}" if kind == "tcp" else f"{tmp_path}/s"
    type_ = socket.SOCK_SEQPACKET if kind == "seqpacket" else socket.SOCK_STREAM
    async with serving(f"{kind}:{where}") as port:
        if kind == "tcp":
            client = await tcp_client(unused_tcp_port)
        else:
            client = await connected(where, type_)
        port.throttle(True)
        for _ in range(500):
            port.write(PIECE)
        await fill(client)
    client.close()
    await until_only_open(before)
    assert not list(tmp_path.iterdir())
    assert not caplog.records

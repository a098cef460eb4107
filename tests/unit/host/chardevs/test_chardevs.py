"""Every kind of chardev, as the far side of a port of a real host end."""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import frozen
from inotify_simple import INotify, flags

from tests.unit.host.chardevs.chardev_port import descriptors, until_only_open
from vconfs.errors import VconfsError
from vconfs.guest.port import Opener, Port, PortOptions
from vconfs.host.chardev import parse_chardev
from vconfs.host.host import open_host
from vconfs.host.spec import parse_port
from vconfs.protocol.events import Buffer
from vconfs.testing import Ends, open_ends


@frozen
class Joined:
    """One port and what serves it."""

    ends: Ends
    port: Port

    async def read(self, size: int) -> bytes:
        """Read exactly so much from the port."""
        data = b""
        while len(data) < size:
            piece = taken(await self.port.read(size - len(data)))
            assert piece, f"end of file after {data!r}"
            data += piece
        return data

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[await self.port.write(rest) :]

    async def until(self, condition: Callable[[Port], bool]) -> None:
        """Wait for a change of the port after which `condition` holds."""
        changed = trio.Event()

        class Observer:
            def port_changed(self, port: Port) -> None:
                if condition(port):
                    changed.set()

            def port_added(self, port: Port) -> None: ...
            def port_removed(self, port: Port) -> None: ...
            def port_renamed(self, port: Port, old: bytes) -> None: ...

        self.ends.manager.observers.append(Observer())
        if not condition(self.port):
            await changed.wait()

    async def connected(self, connected: bool = True) -> None:
        await self.until(lambda port: port.host_connected == connected)


def taken(pieces: list[Buffer]) -> bytes:
    return b"".join(pieces)


@asynccontextmanager
async def joined(chardev: object, options: str = "") -> AsyncIterator[Joined]:
    spec = parse_port(f"port={chardev}{options}")
    async with open_ends([spec], PortOptions(throttle="block")) as ends:
        port = ends.ports[0]
        port.open(Opener(os.getpid()))
        yield Joined(ends, port)


# --- how they are written -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unix:", "unix needs a path: unix:PATH"),
        ("unix", "unix needs a path: unix:PATH"),
        ("connect:", "connect needs a path: connect:PATH"),
        ("seqpacket:", "seqpacket needs a path: seqpacket:PATH"),
        ("unix:" + "x" * 108, "unix: a socket's path has at most 107 bytes: x"),
        ("tcp:", "tcp needs a host and a port: tcp:HOST:PORT, not ''"),
        ("tcp:host", "tcp needs a host and a port: tcp:HOST:PORT, not 'host'"),
        ("tcp:host:http", "tcp needs a host and a port"),
        ("tcp:host:65536", "tcp needs a host and a port"),
        ("file:", "file needs a path: file:PATH"),
        ("pipe:", "pipe needs a path: pipe:PATH, for PATH.in and PATH.out"),
        ("exec: ", "exec needs a command: exec:COMMAND"),
        ("stdio:x", "stdio takes no argument, not 'x'"),
        ("echo:x", "echo takes no argument, not 'x'"),
        ("null:x", "null takes no argument"),
        ("zero:x", "zero takes no argument"),
        ("", "unknown chardev ''"),
        ("carrier-pigeon:x", "unknown chardev 'carrier-pigeon': it is one of connect, echo"),
    ],
)
def test_bad_chardevs(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        parse_chardev(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chat", "'chat' is not NAME=CHARDEV, for example clipboard=unix:/run/clip.sock"),
        ("chat=", "unknown chardev ''"),
        ("chat=echo,id=x", "id is a number from 0 to 32767, not 'x'"),
        ("chat=echo,id=-1", "id is a number from 0 to 32767, not '-1'"),
        ("chat=echo,id=32768", "id is a number from 0 to 32767, not '32768'"),
        ("chat=echo,limit=0", "limit is a size in bytes, or like 64K, 4M, 1G, from 1M to"),
        (
            "chat=echo,host-limit=0",
            "host-limit is a size in bytes, or like 64K, 4M, 1G, from 1 to 1G",
        ),
        ("chat=echo,cache=yes", "cache takes no value, not 'yes'"),
        ("chat=echo,cache,cache", "cache is given twice"),
        ("chat=echo,limit", "limit needs a value: limit=SIZE"),
        ("chat=echo,loud", "unknown option of echo: 'loud'"),
    ],
)
def test_bad_port_specs(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_port(text)
    assert message in str(caught.value)


def test_port_specs() -> None:
    spec = parse_port("a.b=exec:echo 1,2; cat,id=7,console,cache,limit=3M,host-limit=4096")
    assert spec.chardev == parse_chardev("exec:echo 1,2; cat")
    assert (spec.name, spec.id, spec.console, spec.cache) == (b"a.b", 7, True, True)
    assert (spec.limit, spec.host_limit) == (3, 4096)
    assert parse_port("=echo").name == b""


# --- sockets ------------------------------------------------------------------------------


async def test_unix_serves_one_client_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    async with joined(f"unix:{path}") as it:
        assert not it.port.host_connected
        for round in (b"one", b"two"):
            client = await trio.open_unix_socket(str(path))
            await client.send_all(round)
            assert await it.read(3) == round
            await it.write(b"back")
            assert await client.receive_some() == b"back"
            await client.aclose()
            assert taken(await it.port.read(100)) == b""
            await it.connected(False)
    assert not path.exists()


async def test_a_second_client_waits_until_the_first_has_left(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    async with joined(f"unix:{path}") as it:
        first = await trio.open_unix_socket(path)
        await first.send_all(b"1")
        assert await it.read(1) == b"1"
        second = await trio.open_unix_socket(path)
        await second.send_all(b"2")
        await first.aclose()
        assert taken(await it.port.read(100)) == b""
        assert await it.read(1) == b"2"
        await second.aclose()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_client_that_has_sent_everything_still_gets_its_answer(
    kind: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    path = str(tmp_path / "sock")
    where = path if kind == "unix" else f"127.0.0.1:{unused_tcp_port}"
    async with joined(f"{kind}:{where}") as it:
        client: trio.SocketStream
        if kind == "unix":
            client = await trio.open_unix_socket(path)
        else:
            client = await trio.open_tcp_stream("127.0.0.1", unused_tcp_port)
        await client.send_all(b"question")
        await client.send_eof()
        assert await it.read(8) == b"question"
        await trio.testing.wait_all_tasks_blocked()
        await it.write(b"answer")
        assert await client.receive_some() == b"answer"
        await client.aclose()
        await it.connected(False)


async def test_what_the_guest_sends_stays_in_the_port_until_the_client_takes_it(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "sock")
    async with joined(f"unix:{path}", ",host-limit=100000") as it:
        client = await trio.open_unix_socket(path)
        await it.connected()
        sent = 0
        while not it.port.host_throttled:
            sent += it.port.write_nowait(bytes(50_000))
            await trio.testing.wait_all_tasks_blocked()
        assert sent < 16 << 20
        got = 0
        while got < sent:
            got += len(await client.receive_some())
        await it.until(lambda port: not port.host_throttled)
        await client.aclose()


async def test_a_client_feels_that_the_guest_does_not_read(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    async with joined(f"unix:{path}") as it:
        client = trio.socket.socket(socket.AF_UNIX)
        await client.connect(path)
        sent = 0
        with trio.move_on_after(0.5):  # it never gets through: this is the time given to it
            while True:
                sent += await client.send(bytes(65536))
        assert sent < 16 << 20
        assert it.port.guest_throttled
        assert await it.read(sent) == bytes(sent)
        client.close()


@pytest.mark.parametrize("kind", ["unix", "seqpacket"])
async def test_where_a_socket_cannot_be_made(kind: str, tmp_path: Path) -> None:
    taken_path, file = tmp_path / "taken", tmp_path / "file"
    file.write_text("precious")
    listening = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM if kind == "unix" else socket.SOCK_SEQPACKET
    )
    with listening:
        listening.bind(str(taken_path))
        listening.listen()
        for path, message in (
            (taken_path, f"{taken_path} is in use by another program"),
            (file, f"{file} exists and is not a socket"),
            (tmp_path / "no" / "sock", f"the folder {tmp_path}/no does not exist"),
        ):
            with pytest.raises(VconfsError) as caught:
                async with open_host([parse_port(f"x={kind}:{path}")]):
                    pass
            assert message in str(caught.value)
    assert file.read_text() == "precious"
    # No program listens on it any more: a program that died has left it, and it is replaced.
    async with open_host([parse_port(f"x={kind}:{taken_path}")]):
        assert stat.S_ISSOCK(taken_path.stat().st_mode)


async def test_a_tcp_port_in_use(unused_tcp_port: int) -> None:
    where = f"127.0.0.1:{unused_tcp_port}"
    with (
        socket.create_server(("127.0.0.1", unused_tcp_port)),
        pytest.raises(VconfsError, match=f"cannot listen on {where}: Address already in use"),
    ):
        async with open_host([parse_port(f"x=tcp:{where}")]):
            pass


@pytest.mark.expect_log("trying again")
async def test_connect_keeps_trying_and_comes_back(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    async with joined(f"connect:{path}") as it:
        for round in (b"one", b"two"):
            listener = trio.socket.socket(socket.AF_UNIX)
            await listener.bind(path)
            listener.listen()
            peer, _ = await listener.accept()
            await peer.send(round)
            assert await it.read(3) == round
            peer.close()
            listener.close()
            os.unlink(path)
            assert taken(await it.port.read(10)) == b""


async def test_seqpacket_keeps_the_guests_writes_apart(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    async with joined(f"seqpacket:{path}") as it:
        client = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        await client.connect(path)
        await it.connected()
        messages = [b"one", b"x" * 100_000, b"three", b"y" * (1 << 20)]
        for message in messages:
            await it.write(message)
            assert await client.recv(2 << 20) == message
        await client.send(b"to the guest")
        assert await it.read(12) == b"to the guest"
        client.close()
        await it.connected(False)


# --- builtin ------------------------------------------------------------------------------


async def test_echo_keeps_the_order_when_the_guest_is_slow() -> None:
    async with joined("echo") as it:
        data = os.urandom(3 << 20)

        async def write() -> None:
            for start in range(0, len(data), 70_001):
                await it.write(data[start : start + 70_001])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            assert it.port.host_throttled or it.port.guest_throttled
            assert await it.read(len(data)) == data


async def test_null_and_zero() -> None:
    async with joined("null") as it:
        assert it.port.host_connected
        await it.write(bytes(5 << 20))
        assert it.port.queued == 0
    async with joined("zero") as it:
        assert await it.read(5 << 20) == bytes(5 << 20)
        await it.write(bytes(5 << 20))


# --- files --------------------------------------------------------------------------------


async def test_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before ")
    async with joined(f"file:{path}") as it:
        assert it.port.host_connected
        with INotify() as changes:
            changes.add_watch(path, flags.MODIFY)
            await it.write(b"after")
            await trio.lowlevel.wait_readable(changes)
        assert path.read_bytes() == b"before after"


@pytest.mark.parametrize("kind", ["file", "pipe", "pty"])
async def test_where_a_file_cannot_be_made(kind: str, tmp_path: Path) -> None:
    with pytest.raises(VconfsError) as caught:
        async with open_host([parse_port(f"x={kind}:{tmp_path}/no/file")]):
            pass
    assert f"{tmp_path}/no/file" in str(caught.value)


async def test_fifos_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    async with joined(f"pipe:{path}") as it:
        with open(f"{path}.in", "wb", buffering=0) as fifo:
            fifo.write(b"in")
        assert await it.read(2) == b"in"
        with open(f"{path}.out", "rb", buffering=0) as fifo:
            await it.write(b"out")
            await trio.lowlevel.wait_readable(fifo)
            assert fifo.read(10) == b"out"
    assert list(tmp_path.iterdir()) == []


async def test_existing_fifos_stay_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(f"{path}.in")
    async with joined(f"pipe:{path}"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["fifo.in"]
    Path(f"{path}.out").write_text("precious")
    with pytest.raises(VconfsError, match="exists and is not a fifo"):
        async with open_host([parse_port(f"x=pipe:{path}")]):
            pass


async def test_a_pty_is_connected_while_a_program_has_it_open(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    async with joined(f"pty:{link}") as it:
        assert not it.port.host_connected
        for round in (b"one", b"two"):
            slave = os.open(link, os.O_RDWR | os.O_NOCTTY)
            await it.connected()
            os.write(slave, round)
            assert await it.read(3) == round
            await it.write(b"\x03\r\nraw")
            await trio.lowlevel.wait_readable(slave)
            assert os.read(slave, 100) == b"\x03\r\nraw"
            os.close(slave)
            assert taken(await it.port.read(10)) == b""
            await it.connected(False)
    assert not link.is_symlink()


async def test_a_link_that_is_something_else_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    link.write_text("precious")
    with pytest.raises(VconfsError, match="exists and is not a link to a pty"):
        async with open_host([parse_port(f"x=pty:{link}")]):
            pass
    assert link.read_text() == "precious"
    link.unlink()
    link.symlink_to("/dev/pts/9999")  # what a pty that has gone has left
    async with open_host([parse_port(f"x=pty:{link}")]):
        assert os.readlink(link) != "/dev/pts/9999"


# --- programs -----------------------------------------------------------------------------


async def test_exec_runs_once_for_each_open() -> None:
    async with joined("exec:echo hello; cat") as it:
        assert await it.read(6) == b"hello\n"
        await it.write(b"again")
        assert await it.read(5) == b"again"
        (opener,) = it.port.openers
        it.port.close(opener)
        it.port.open(opener)
        assert await it.read(6) == b"hello\n"


async def test_exec_hangs_up_when_the_program_ends_and_loses_no_output() -> None:
    async with joined("exec:head -c 300000 /dev/zero") as it:
        assert await it.read(300_000) == bytes(300_000)
        assert taken(await it.port.read(10)) == b""


async def test_exec_outlives_a_program_that_does_not_read_and_ignores_signals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vconfs.system.shell_programs._PATIENCE", 0.2)
    async with joined("exec:trap '' TERM; echo $$; exec sleep 1000") as it:
        pid = int((await it.read(2)) + taken(await it.port.read(20)))
        it.port.write_nowait(bytes(200_000))
        gone = os.pidfd_open(pid)
    assert select.select([gone], [], [], 0)[0], "the program is still there"
    os.close(gone)


@pytest.mark.parametrize(
    "kind", ["unix", "seqpacket", "pty", "pipe", "file", "exec", "connect", "echo"]
)
@pytest.mark.expect_log("trying again")
async def test_ending_leaves_no_descriptor(kind: str, tmp_path: Path) -> None:
    argument = {"exec": ":cat", "pty": "", "echo": ""}.get(kind, f":{tmp_path}/x")
    before = descriptors()
    async with joined(kind + argument) as it:
        it.port.poll()
        await trio.testing.wait_all_tasks_blocked()
    await until_only_open(before)
    if kind != "file":
        assert list(tmp_path.iterdir()) == []

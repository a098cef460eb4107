"""The sockets of hypervisors as files: `vconfs mount --device sockets:GLOB`.

Small servers play the hypervisors; one is QEMU in tests/guest/test_sockets.py.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from inotify_simple import INotify, flags

from tests.support.hypervisor import Echo, channel, echoing
from tests.support.threads import error_of, in_thread
from tests.support.waiting import block_until, until
from vconfs.files.rules import parse_rules
from vconfs.mirror.sockets import SocketGuests, Sockets
from vconfs.mounting import HostMount, Plan

from .conftest import program
from .test_commands import VCONFS, folder, vconfs
from .test_namespace import next_notice
from .test_watching import seen

__all__ = ["folder"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of the hypervisors' sockets."""
    path = tmp_path / "run"
    path.mkdir()
    return path


@asynccontextmanager
async def mounted(folder: Path, run: Path, rules: str = "") -> AsyncIterator[SocketGuests]:
    """Mount the sockets in this process."""
    mount = HostMount(Plan(folder, rules=parse_rules(rules, "rules")), opens_wait=True)
    source = SocketGuests(Sockets.parse(f"sockets:{run}/*/*"), mount.guests)
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run)
        async with mount.opened():
            with trio.fail_after(20):
                yield source
        nursery.cancel_scope.cancel()


def conversation(port: Path) -> bytes:
    with open(port, "r+b", buffering=0) as file:
        file.write(b"hello\n")
        return file.read(100)


async def test_a_port_leads_to_its_guest(folder: Path, run: Path) -> None:
    async with trio.open_nursery() as nursery:
        echoes = [Echo(run / guest / name) for guest in ("web", "a b") for name in ("x", "y")]
        for echo in echoes:
            await nursery.start(echo.run)
        rules = '[[port]]\nguest = "web"\nname = "y"\nmode = "0640"'
        async with mounted(folder, run, rules):
            assert await in_thread(lambda: sorted(os.listdir(folder))) == [".events", "a b", "web"]
            for guest in ("web", "a b"):
                for number, name in enumerate("xy"):
                    port = folder / guest / "by-name" / name
                    assert await in_thread(partial(os.readlink, port)) == f"../vcon{number}"
                    assert await in_thread(partial(os.getxattr, port, "name")) == name.encode()
                    assert await in_thread(partial(conversation, port)) == b"HELLO\n"
            modes = [(await in_thread((folder / "web" / f"vcon{n}").stat)).st_mode for n in (0, 1)]
            assert [mode & 0o777 for mode in modes] == [0o600, 0o640]
        assert [echo.clients for echo in echoes] == [1, 1, 1, 1]
        nursery.cancel_scope.cancel()


async def test_an_open_fails_if_the_hypervisor_has_another_client(folder: Path, run: Path) -> None:
    port = folder / "web" / "vcon0"
    async with trio.open_nursery() as nursery:
        await nursery.start(Echo(run / "web/agent").run)
        async with mounted(folder, run):
            async with await trio.open_unix_socket(run / "web/agent") as other:
                await other.send_all(b"first")
                assert await other.receive_some() == b"FIRST"
                assert await error_of(lambda: os.open(port, os.O_RDWR)) == errno.EBUSY
                assert await in_thread(lambda: os.getxattr(port, "user.openers")) == b""
            assert await in_thread(lambda: conversation(port)) == b"HELLO\n"
        nursery.cancel_scope.cancel()


async def test_an_open_that_waits_holds_nothing_else_and_ends_by_a_signal(
    folder: Path, run: Path
) -> None:
    with channel(run / "web/agent"), echoing(run / "db/agent"):
        async with mounted(folder, run) as source:
            waits = f"exec cat {folder}/web/vcon0"
            async with program("bash", "-c", waits) as cat:
                manager = source._guests.by_name["web"].manager
                await until(lambda: manager.ports[0].openers)
                assert await in_thread(lambda: conversation(folder / "db" / "vcon0")) == b"HELLO\n"
                cat.send_signal(signal.SIGINT)
                assert await cat.wait() == -signal.SIGINT
                await until(lambda: not manager.ports[0].openers)


async def test_inotify_tells_of_guests_and_ports(folder: Path, run: Path) -> None:
    kinds = flags.CREATE | flags.DELETE
    with channel(run / "web/agent"), INotify() as watch, INotify() as inner:
        async with mounted(folder, run):
            await in_thread(lambda: watch.add_watch(str(folder), kinds))
            await in_thread(lambda: inner.add_watch(str(folder / "web"), kinds))
            with channel(run / "db/agent"), channel(run / "web/late"):
                assert await next_notice(watch, flags.CREATE) == "db"
                assert await next_notice(inner, flags.CREATE) == "vcon1"
            (run / "web/late").unlink()
            (run / "db/agent").unlink()
            assert await next_notice(watch, flags.DELETE) == "db"
            assert await next_notice(inner, flags.DELETE) == "vcon1"


@pytest.mark.expect_log("no socket is there yet", "trying again")
async def test_readers_see_the_end_of_a_hypervisor_and_the_next_one(
    folder: Path, run: Path
) -> None:
    port = folder / "web" / "vcon0"
    async with mounted(folder, run) as source, trio.open_nursery() as nursery:
        with echoing(run / "web/agent"):
            await until(lambda: source._guests.by_name)
            file = await in_thread(lambda: os.open(port, os.O_RDWR))
            assert await in_thread(lambda: os.write(file, b"one")) == 3
            assert await in_thread(lambda: os.read(file, 100)) == b"ONE"
        assert await in_thread(lambda: os.read(file, 100)) == b"", "it was killed"
        waiting: list[bytes] = []

        async def write() -> None:
            await in_thread(lambda: os.write(file, b"two"))
            waiting.append(await in_thread(lambda: os.read(file, 100)))

        nursery.start_soon(write)
        with echoing(run / "web/agent"):
            await until(lambda: waiting)
        assert waiting == [b"TWO"]
        await in_thread(lambda: os.close(file))


async def test_poll_and_nonblock_are_those_of_any_port(folder: Path, run: Path) -> None:
    with channel(run / "web/agent") as server:
        async with mounted(folder, run), trio.open_nursery() as nursery:
            files: list[int] = []

            async def open_port() -> None:
                flags = os.O_RDWR | os.O_NONBLOCK
                files.append(await in_thread(lambda: os.open(folder / "web" / "vcon0", flags)))

            async def polled(mask: int) -> None:
                """Wait until a poll shows this mask."""
                poll = select.poll()
                poll.register(files[0], select.POLLIN | select.POLLOUT)
                with trio.fail_after(10):
                    while [mask] != [it for _, it in await in_thread(lambda: poll.poll(100))]:
                        pass

            nursery.start_soon(open_port)
            guest = await server.accept()
            await until(lambda: files)
            await polled(select.POLLOUT)
            assert await error_of(lambda: os.read(files[0], 100)) == errno.EAGAIN
            await guest.send_all(b"hello")
            await polled(select.POLLIN | select.POLLOUT)
            assert await in_thread(lambda: os.read(files[0], 100)) == b"hello"
            code = None
            while code is None:
                code = await error_of(lambda: os.write(files[0], bytes(4096)))
            assert code == errno.EAGAIN
            nothing = await in_thread(lambda: select.select(files, files, [], 0))
            assert nothing == ([], [], [])
            async for _ in guest:
                if await in_thread(lambda: select.select([], files, [], 0)[1]):
                    break
            await polled(select.POLLOUT)
            await guest.aclose()
            await polled(select.POLLIN | select.POLLHUP)
            assert await in_thread(lambda: os.read(files[0], 100)) == b""
            async with await server.accept():
                await polled(select.POLLOUT)
                await in_thread(lambda: os.close(files[0]))


# --- as a command ---------------------------------------------------------------------------


@pytest.fixture
def guests(folder: Path, run: Path) -> Iterator[Path]:
    """The mount of a command, with two guests."""
    with echoing(run / "web/agent"), echoing(run / "db/agent"):
        vconfs("mount", "--device", f"sockets:{run}/*/*", str(folder))
        yield folder
        vconfs("umount", str(folder))


def test_a_shell_talks_to_a_guest(guests: Path) -> None:
    script = 'exec 3<>"$0"; echo ping >&3; read -r answer <&3; echo "$answer"'
    for guest in ("web", "db"):
        port = guests / guest / "by-name" / "agent"
        done = subprocess.run(
            ["bash", "-c", script, port], capture_output=True, timeout=10, check=True
        )
        assert done.stdout == b"PING\n"
    mount = [line for line in Path("/proc/mounts").read_text().splitlines() if str(guests) in line]
    assert mount[0].startswith("sockets:")


def test_the_commands_name_the_guests(guests: Path, run: Path) -> None:
    with open(guests / "web" / "vcon0", "r+b", buffering=0) as port:
        port.write(b"12345")
        block_until(lambda: os.getxattr(guests / "web" / "vcon0", "user.queued") == b"5")
        lines = [line.split() for line in vconfs("ls", str(guests)).splitlines()]
        me = [str(os.getpid()), os.fsdecode(Path("/proc/self/comm").read_bytes().strip())]
        assert lines == [
            ["GUEST", "PORT", "NAME", "PEER", "STATE", "OPEN", "BY", "QUEUED", "IN", "OUT"],
            ["db", "vcon0", "agent", "-", "-", "-", "0", "0", "0"],
            ["web", "vcon0", "agent", "connected", "-", *me, "5", "5", "5"],
        ]
        top = vconfs("top", "--count", "1", str(guests)).splitlines()
        assert [line.split()[0] for line in top] == ["GUEST", "db", "web"]
        assert os.getxattr(guests / "web", "user.connected") == b"1"
        assert os.getxattr(guests / "web", "user.address") == os.fsencode(run / "web")
        assert os.getxattr(guests / "web" / "vcon0", "user.guest") == b"1"
    command = [*VCONFS, "connect", str(guests / "db" / "agent")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as connect:
        assert connect.stdin is not None
        assert connect.stdout is not None
        connect.stdin.write(b"hi\n")
        connect.stdin.flush()
        assert connect.stdout.read(3) == b"HI\n"
        connect.terminate()


def test_a_command_says_that_another_program_has_the_socket(guests: Path, run: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(run / "web/agent"))
        other.sendall(b"x")
        assert other.recv(1) == b"X"
        error = vconfs("cat", str(guests / "web" / "agent"), code=1)
        assert error.endswith("by-name/agent: another program is connected in its place")


def has_open(pid: int, name: str) -> bool:
    """True if a process has a file of that name open."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it has been closed just now
            if descriptor.readlink().name == name:
                return True
    return False


async def test_watch_tells_of_guests_that_come_and_go(guests: Path, run: Path) -> None:
    async with program(*VCONFS, "watch", "--json", str(guests)) as watch:
        await until(partial(has_open, watch.pid, ".events"))
        with echoing(run / "late/agent"):
            await seen(watch, b"guest-add", b"guest-connect", b'"add"', b'"name"')
            assert await in_thread(lambda: conversation(guests / "late" / "vcon0")) == b"HELLO\n"
            await seen(watch, b'"open"', b'"connect"', b'"close"', b'"disconnect"')
            (run / "late/agent").unlink()
            await seen(watch, b'"remove"', b"guest-disconnect", b"guest-remove")


def test_the_end_waits_for_readers_and_says_what_was_lost(folder: Path, run: Path) -> None:
    log = run.parent / "log"
    with echoing(run / "web/agent"):
        mount = ["mount", "--log", str(log), "-o", "drain=0.3s"]
        vconfs(*mount, "--device", f"sockets:{run}/*/*", str(folder))
        file = os.open(folder / "web" / "vcon0", os.O_RDWR)
        os.write(file, b"12345")
        block_until(lambda: os.getxattr(folder / "web" / "vcon0", "user.queued") == b"5")
        begun = time.monotonic()
        vconfs("umount", str(folder))
        assert time.monotonic() - begun < 10
        with suppress(OSError):  # the mount has ended
            os.close(file)
    assert "5 bytes were dropped, not delivered: 5 of web 'agent'" in log.read_text()


def test_it_is_mounted_by_mount(folder: Path, run: Path) -> None:
    """mount(8) calls a helper with these words."""
    with echoing(run / "web/agent"):
        vconfs(f"sockets:{run}/*/*", str(folder), "-o", "rw,mode=0640")
        assert (folder / "web" / "vcon0").stat().st_mode & 0o777 == 0o640
        assert json.loads(vconfs("ls", "--json", str(folder)))["guest_name"] == "web"
        vconfs("umount", str(folder))


def test_a_glob_may_match_what_is_in_the_mount_itself(folder: Path, run: Path) -> None:
    """Watching a folder of the mount is a call that the mount has to answer."""
    above = run.parent
    with echoing(above / "web/agent"):
        vconfs("mount", "--device", f"sockets:{above}/*/*", str(folder))
        with echoing(above / "late/agent"):
            block_until(lambda: os.getxattr(folder, "user.guests") == b"2")
            assert conversation(folder / "late" / "vcon0") == b"HELLO\n"
        vconfs("umount", str(folder))

"""The host's side as files: a folder for each guest, in a mount beside a host end.

What one of its files does is tested in test_files.py, with those of a guest's mount.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from attrs import frozen
from inotify_simple import INotify, flags

from tests.support.threads import error_of, in_thread
from tests.support.waiting import block_until, until
from vconfs.files._events_file import GuestsEventsFile
from vconfs.files.rules import parse_rules
from vconfs.guest.devices import join_embedded
from vconfs.guest.opener import Opener
from vconfs.guest.ports import PortManager
from vconfs.host.fleet import Fleet, GuestSpec, open_fleet
from vconfs.host.spec import parse_port
from vconfs.mounting import HostMount, Plan

from .conftest import program
from .test_commands import VCONFS, folder, vconfs
from .test_fleet import host, mounted
from .test_namespace import next_notice
from .test_watching import seen

__all__ = ["folder"]


@frozen
class HostFiles:
    """A host end with a mount."""

    path: Path
    fleet: Fleet
    mount: HostMount

    async def add(self, name: str, *ports: str) -> Path:
        """Add a guest; return its folder."""
        await self.fleet.add(GuestSpec(name, [parse_port(port) for port in ports]))
        return self.path / name


@asynccontextmanager
async def host_files(folder: Path, rules: str = "") -> AsyncIterator[HostFiles]:
    path = folder / "guests"
    path.mkdir()
    mount = HostMount(Plan(path, rules=parse_rules(rules, "rules")))
    async with open_fleet(files=mount) as fleet, mount.opened():
        with trio.fail_after(20):
            yield HostFiles(path, fleet, mount)


async def listed(path: Path) -> list[str]:
    return sorted(await in_thread(lambda: os.listdir(path)))


async def attributes(path: Path) -> dict[str, str]:
    def read() -> dict[str, str]:
        return {name: os.getxattr(path, name).decode() for name in os.listxattr(path)}

    return await in_thread(read)


async def test_each_guest_has_a_folder_like_a_mount_of_its_own(tmp_path: Path) -> None:
    async with host_files(tmp_path) as it:
        web1 = await it.add("web1", "chat=mount", "log=null", "agent=mount,id=7")
        web2 = await it.add("web2", "chat=mount")
        assert await listed(it.path) == [".events", "web1", "web2"]
        assert await listed(web1) == [".events", ".tap", "by-name", "vcon0", "vcon7"]
        assert await listed(web1 / "by-name") == ["agent", "chat"]
        chat = await in_thread(lambda: os.stat(web1 / "by-name" / "chat"))
        assert chat.st_ino == (await in_thread(lambda: os.stat(web1 / "vcon0"))).st_ino
        assert chat.st_ino != (await in_thread(lambda: os.stat(web2 / "vcon0"))).st_ino
        await it.fleet.remove("web2")
        assert await listed(it.path) == [".events", "web1"]
        assert await error_of(lambda: os.stat(web2 / "vcon0")) == errno.ENOENT


async def test_attributes_say_of_a_guest_if_it_is_connected(tmp_path: Path) -> None:
    async with host_files(tmp_path) as it:
        web1 = await it.add("web1", "chat=mount")
        assert await attributes(it.path) == {"user.pid": str(os.getpid()), "user.guests": "1"}
        before = await attributes(web1)
        assert before.pop("user.pid") == str(os.getpid())
        assert abs(float(before.pop("user.since")) - time.time()) < 20
        assert before == {"user.connected": "0"}
        async with join_embedded(it.fleet.find("web1"), PortManager()):
            now = await attributes(web1)
            assert (now["user.connected"], now["user.address"]) == ("1", "embedded")
        assert (await attributes(web1))["user.connected"] == "0"


async def test_attributes_of_a_file_have_the_words_swapped(tmp_path: Path) -> None:
    async with host_files(tmp_path) as it:
        web1, guest = await it.add("web1", "chat=mount"), PortManager()
        async with join_embedded(it.fleet.find("web1"), guest):
            await until(lambda: guest.ports)
            guest.ports[0].open(Opener(1))
            found = await attributes(web1 / "vcon0")
        assert (found["name"], found["user.guest"], found["user.host_throttled"]) == (
            *("chat", "1", "0"),
        )
        assert not {"user.host", "user.guest_throttled", "user.host_dropped"} & found.keys()


async def test_inotify_tells_of_guests_and_of_ports(tmp_path: Path) -> None:
    async with host_files(tmp_path) as it:
        with INotify() as watch, INotify() as inner:
            kinds = flags.CREATE | flags.DELETE | flags.ATTRIB
            await in_thread(lambda: watch.add_watch(str(it.path), kinds))
            web1 = await it.add("web1")
            assert await next_notice(watch, flags.CREATE) == "web1"
            await in_thread(lambda: inner.add_watch(str(web1), kinds))
            host_end = it.fleet.find("web1")
            await host_end.add(parse_port("chat=mount"))
            assert await next_notice(inner, flags.CREATE) == "vcon0"
            async with join_embedded(host_end, PortManager()):
                assert await next_notice(watch, flags.ATTRIB) == "web1"
            host_end.remove(0)
            assert await next_notice(inner, flags.DELETE) == "vcon0"
            await it.fleet.remove("web1")
            assert await next_notice(watch, flags.DELETE) == "web1"


async def test_a_guest_that_goes_ends_the_files_of_its_folder(tmp_path: Path) -> None:
    async with host_files(tmp_path) as it:
        web1, guest = await it.add("web1", "chat=mount"), PortManager()
        async with join_embedded(it.fleet.find("web1"), guest):
            await until(lambda: guest.ports)
            guest.ports[0].open(Opener(1))
            async with (
                program("cat", str(web1 / ".events")) as events,
                program("cat", str(web1 / "vcon0")) as cat,
            ):
                await until(lambda: guest.ports[0].host_connected)
                await until(lambda: it.mount.guests.by_name["web1"].manager.ports[0].openers)
                await it.fleet.remove("web1")
                assert await cat.wait() in (0, 1)
                assert await events.wait() == 0


RULES = """
[[port]]
name = "shared"
mode = "0640"
gid = 65534

[[port]]
guest = "web*"
name = "shared"
mode = "0660"
exclusive = true
"""


async def test_rules_are_for_guests_and_ports(tmp_path: Path) -> None:
    async with host_files(tmp_path, RULES) as it:
        found = []
        for name in ("web1", "db1"):
            file = await it.add(name, "own=mount", "shared=mount")
            for port in ("vcon0", "vcon1"):
                status = await in_thread(lambda path=file / port: os.stat(path))  # type: ignore[misc]
                found.append((oct(status.st_mode & 0o777), status.st_gid))
        ours = ("0o600", os.getgid())
        assert found == [ours, ("0o660", 65534), ours, ("0o640", 65534)]
        ports = it.mount.guests.by_name["web1"].manager.ports
        assert [ports[port_id].options.exclusive for port_id in (0, 1)] == [False, True]
        it.fleet.find("web1").rename(1, b"other")
        assert not ports[1].options.exclusive


async def test_events_of_all_guests_and_of_one(tmp_path: Path) -> None:
    async with host_files(tmp_path) as it:
        await it.add("web1", "chat=mount")
        lines: dict[str, bytes] = {"all": b"", "one": b""}

        async def follow(key: str, path: Path) -> None:
            async with program("cat", str(path)) as cat:
                assert cat.stdout is not None
                async for data in cat.stdout:
                    lines[key] += data

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, "all", it.path / ".events")
            nursery.start_soon(follow, "one", it.path / "web1" / ".events")
            await until(lambda: all(b"ready" in text for text in lines.values()))
            guest = PortManager()
            async with join_embedded(it.fleet.find("web1"), guest):
                await until(lambda: guest.ports)
                guest.ports[0].open(Opener(1))
            await it.add("web2", "chat=mount")
            await it.fleet.remove("web2")
            await until(lambda: b"guest-remove" in lines["all"])
            nursery.cancel_scope.cancel()
        heard = [json.loads(line) for line in lines["all"].splitlines()]
        assert [(line["event"], line.get("guest_name")) for line in heard] == [
            ("guest-present", "web1"),
            ("present", "web1"),
            ("ready", None),
            ("guest-connect", "web1"),
            ("connect", "web1"),
            ("disconnect", "web1"),
            ("guest-disconnect", "web1"),
            ("guest-add", "web2"),
            ("add", "web2"),
            ("name", "web2"),
            ("remove", "web2"),
            ("guest-remove", "web2"),
        ]
        connect = next(line for line in heard if line["event"] == "connect")
        assert connect["guest"] is True
        own = [json.loads(line)["event"] for line in lines["one"].splitlines()]
        assert own == ["present", "ready", "connect", "disconnect"]


async def test_watch_tells_of_every_guest(tmp_path: Path) -> None:
    async with host_files(tmp_path) as it:
        await it.add("web1", "chat=mount")
        manager = it.mount.guests.by_name["web1"].manager
        events = next(one for one in manager.observers if isinstance(one, GuestsEventsFile))
        async with program(*VCONFS, "watch", str(it.path)) as watch:
            await until(lambda: any(not reader.lines for reader in events._readers.values()))
            await it.add("web2")
            it.fleet.find("web1").rename(0, b"talk")
            await seen(
                watch, b"guest-add         web2\n", b"name              web1      vcon0   talk\n"
            )
        guest = PortManager()
        goal = ("--until", "connect=web1/talk", "--timeout", "10")
        async with program(*VCONFS, "watch", *goal, str(it.path)) as watch:
            async with join_embedded(it.fleet.find("web1"), guest):
                await until(lambda: guest.ports)
                guest.ports[0].open(Opener(1))
                assert await watch.wait() == 0


async def test_tap_shows_the_ports_of_one_guest(tmp_path: Path) -> None:
    async with host_files(tmp_path) as it:
        web1, guest = await it.add("web1", "chat=mount"), PortManager()
        taps = it.mount.guests.by_name["web1"].manager.taps
        async with join_embedded(it.fleet.find("web1"), guest):
            await until(lambda: guest.ports)
            guest.ports[0].open(Opener(1))
            for what in (web1, web1 / "chat"):
                async with program(*VCONFS, "tap", "--limit", "2", str(what)) as tap:
                    await until(lambda: taps._tappers)
                    guest.ports[0].write_nowait(b"from the guest")
                    host_side = it.mount.guests.by_name["web1"].manager.ports[0]
                    await until(lambda: host_side.queued)  # noqa: B023
                    host_side.write_nowait(b"from the host")
                    shown = await seen(tap, b"in   from the guest", b"out  from the host")
                    assert shown.count(b"chat") >= 2
                    assert await tap.wait() == 0
                await until(lambda: not taps._tappers)
        async with program(*VCONFS, "tap", str(it.path)) as tap:
            assert b"tap the ports of one guest" in await seen(tap, b"\n")
            assert await tap.wait() == 1


# --- as programs ---------------------------------------------------------------------------


@contextmanager
def mounting_host(
    folder: Path, *words: str, listeners: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """A host end for any guest, with a mount at guests/."""
    at = folder / "guests"
    at.mkdir()
    listen = ("--listen", f"stream:unix:{folder}/any,guest=*")
    try:
        with host(*listen, "--mount", str(at), *words, listeners=listeners) as process:
            yield process
    finally:
        subprocess.run(["umount", "-l", at], stderr=subprocess.DEVNULL, check=False, timeout=10)


@pytest.fixture
def guests(folder: Path) -> Iterator[Path]:
    """The mount of a host end with an echo and a port of the host's side, and a guest web1."""
    words = ("--port", "chat=mount", "--port", "echo=echo", "--control", f"{folder}/ctl")
    with (
        mounting_host(folder, *words),
        mounted(f"stream:unix:{folder}/any", "web1", folder / "web1"),
    ):
        yield folder / "guests"


def test_a_shell_talks_to_a_guest(guests: Path, folder: Path) -> None:
    chat, port = guests / "web1" / "by-name" / "chat", folder / "web1" / "vcon0"
    with open(chat, "r+b", buffering=0) as ours:
        block_until(lambda: os.getxattr(port, "user.host") == b"1")
        script = 'exec 3<>"$0"; read -r word <&3; echo "got $word" >&3; read -r rest <&3'
        with subprocess.Popen(["bash", "-c", script, port]) as agent:
            block_until(lambda: os.getxattr(chat, "user.guest") == b"1")
            ours.write(b"ping\n")
            assert ours.read(100) == b"got ping\n"
            ours.write(b"\n")
            assert agent.wait(10) == 0
        assert ours.read(100) == b""


def test_ls_and_top_name_the_guest(guests: Path, folder: Path) -> None:
    with open(folder / "web1" / "vcon0", "wb", buffering=0) as port:
        port.write(b"12345")
        vconfs("ctl", f"{folder}/ctl", "guest", "add", "web2")
        block_until(lambda: os.getxattr(guests / "web1" / "vcon0", "user.queued") == b"5")
        lines = [line.split() for line in vconfs("ls", str(guests)).splitlines()]
        heads = ["GUEST", "PORT", "NAME", "PEER", "STATE", "OPEN", "BY", "QUEUED", "IN", "OUT"]
        assert lines == [
            heads,
            ["web1", "vcon0", "chat", "connected", "-", "-", "5", "5", "0"],
            ["web2", "vcon0", "chat", "-", "-", "-", "0", "0", "0"],
        ]
        (one,) = map(json.loads, vconfs("ls", "--json", str(guests / "web1")).splitlines())
        assert (one["guest_name"], one["guest"], one["queued"]) == ("web1", True, 5)
        assert "host" not in one
        paths = vconfs("ls", "-q", str(guests)).splitlines()
        assert paths == [f"{guests}/web1/vcon0", f"{guests}/web2/vcon0"]
        top = vconfs("top", "--count", "1", str(guests)).splitlines()
        assert [line.split()[:3] for line in top] == [
            ["GUEST", "PORT", "NAME"],
            ["web1", "vcon0", "chat"],
            ["web2", "vcon0", "chat"],
        ]


def test_cat_and_connect_find_the_port_of_a_guest(guests: Path, folder: Path) -> None:
    port = folder / "web1" / "vcon0"
    for name in ("web1/chat", f"{guests}/web1/chat", f"{guests}/web1/vcon0"):
        with subprocess.Popen(
            [*VCONFS, "cat", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as cat:
            block_until(lambda: os.getxattr(port, "user.host") == b"1")
            port.write_bytes(b"to the host")
            assert cat.communicate(timeout=10) == (b"to the host", b"")
    said = vconfs("cat", "chat", code=1)  # the guest's mount is on this machine, too
    assert "several mounts have a port chat" in said
    with subprocess.Popen(
        [*VCONFS, "connect", "web1/chat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as connect:
        block_until(lambda: os.getxattr(port, "user.host") == b"1")
        with open(port, "r+b", buffering=0) as its:
            assert connect.stdin is not None
            connect.stdin.write(b"question")
            connect.stdin.flush()
            assert its.read(100) == b"question"
            its.write(b"answer")
        assert connect.communicate(timeout=10)[0] == b"answer"


@pytest.mark.parametrize(
    "words",
    [
        "--control {at}/ctl",
        "--listen stream:unix:{at}/s,guest=*",
        "--listen vhost-user:{at}/s",
        "--port a=file:{at}/web1/vcon0",
        "--port a=file:{at}/new",
        "--port a=pipe:{at}/web1/p",
        "--port a=unix:{at}/web1/s",
        "--port a=pty:{at}/link",
    ],
)
def test_a_host_end_does_not_use_paths_in_its_own_mount(folder: Path, words: str) -> None:
    """It would have to answer itself while it waits for the answer."""
    at = folder / "guests"
    at.mkdir()
    listen = f"stream:unix:{folder}/web1"
    try:
        given = words.format(at=at).split()
        said = vconfs("host", "--listen", listen, "--mount", str(at), *given, code=1)
    finally:
        subprocess.run(["umount", "-l", at], stderr=subprocess.DEVNULL, check=False, timeout=10)
    assert f"this is in {at}, the mount of this process" in said
    assert "\n" not in said


def test_a_guest_whose_folder_would_be_in_the_mount_is_refused(folder: Path) -> None:
    at = folder / "guests"
    with mounting_host(folder, "--port", f"a=unix:{at}/%g/socks/a", "--control", f"{folder}/ctl"):
        (folder / "web1").mkdir()
        url = f"stream:unix:{folder}/any"
        said = vconfs("mount", "--device", url, "--name", "web1", str(folder / "web1"), code=1)
        assert "the mount of this process" in said
        assert "the mount of" in vconfs("ctl", f"{folder}/ctl", "guest", "add", "web1", code=1)
        assert os.listdir(at) == [".events"]


def test_unmounting_ends_the_host_end_in_order(folder: Path) -> None:
    with mounting_host(folder, "--port", "a=mount") as process:
        vconfs("umount", str(folder / "guests"))
        assert process.wait(20) == 0


def test_an_ending_shows_readers_an_end_of_file(folder: Path) -> None:
    at, device = folder / "guests", f"stream:unix:{folder}/any"
    with (
        mounting_host(folder, "--port", "a=mount") as process,
        mounted(device, "web1", folder / "web1"),
        open(folder / "web1" / "vcon0", "wb", buffering=0) as port,
    ):
        port.write(b"first\n")
        with subprocess.Popen(["cat", at / "web1" / "vcon0"], stdout=subprocess.PIPE) as cat:
            assert cat.stdout is not None
            assert cat.stdout.readline() == b"first\n"
            process.terminate()
            assert cat.wait(20) == 0
        assert process.wait(20) == 0


def test_an_ending_delivers_what_a_slow_reader_still_takes(folder: Path) -> None:
    at, device, data = folder / "guests", f"stream:unix:{folder}/any", os.urandom(500_000)
    with (
        mounting_host(folder, "--port", "a=mount") as process,
        mounted(device, "web1", folder / "web1"),
    ):
        file = at / "web1" / "vcon0"
        with open(file, "rb", buffering=0) as reader:
            (folder / "web1" / "vcon0").write_bytes(data)
            block_until(lambda: int(os.getxattr(file, "user.queued")) == len(data))
            got = reader.read(1000)
            process.terminate()
            while more := reader.read(20_000):
                got += more
        assert got == data
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('id = 0\nlimit = "1M"', "NAME=mount,host-limit=SIZE"),
        ("id = 0\ntty = true", "the chardev pty"),
        ("guest = 7", "guest is a text"),
        ('mode = "0600"', "a table needs a name, an id or a guest"),
    ],
)
def test_rules_that_a_host_end_cannot_have(folder: Path, rule: str, message: str) -> None:
    rules = folder / "rules"
    rules.write_text(f"[[port]]\n{rule}\n")
    words = ("--listen", f"stream:unix:{folder}/s", "--mount", "/nowhere", "--rules", str(rules))
    assert message in vconfs("host", *words, code=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "a=mount"], "a port can be a file only of a host end with a mount"),
        (["-o", "wait"], "-o and --rules are for the files of --mount"),
        (["--mount", "/nowhere", "-o", "limit=1M"], "NAME=mount,host-limit=SIZE"),
        (["--mount", "/nowhere", "-o", "tty=a"], "the chardev pty"),
        (["--mount", "/nowhere", "-o", "drain=1s"], "use --drain"),
        (["--mount", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(folder: Path, words: list[str], message: str) -> None:
    code = 2 if "-o" in words else 1
    said = vconfs("host", "--listen", f"stream:unix:{folder}/s", *words, code=code)
    assert message in said

"""Names, attributes and notices of a mount; and the same file system under pyfuse3.main()."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from inotify_simple import INotify, flags

from tests.support.threads import error_of, in_thread
from vconfs import fuse
from vconfs.device.embedded import open_embedded
from vconfs.files._name_changes import NameChanges
from vconfs.files.announcer import Announcer
from vconfs.files.tree import Access
from vconfs.guest.driver import drive
from vconfs.guest.ports import PortManager
from vconfs.host.host import open_host
from vconfs.host.spec import parse_port
from vconfs.mounting import Plan, open_mount

from .conftest import Mounted, OpenMount, program


def listing(path: Path) -> dict[str, tuple[int, int]]:
    """Names with kind and mode, by readdir and by stat."""
    found = {}
    for entry in os.scandir(path):
        status = entry.stat(follow_symlinks=False)
        assert entry.is_symlink() == stat.S_ISLNK(status.st_mode)
        assert entry.inode() == status.st_ino
        found[entry.name] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode))
    return found


async def test_what_a_mount_holds(mounted: OpenMount) -> None:
    async with mounted("org.example.0=echo", "=echo", access=Access(mode=0o640)) as it:
        assert await in_thread(lambda: listing(it.path)) == {
            "vcon0": (stat.S_IFREG, 0o640),
            "vcon1": (stat.S_IFREG, 0o640),
            "by-name": (stat.S_IFDIR, 0o755),
            ".events": (stat.S_IFREG, 0o440),
            ".tap": (stat.S_IFREG, 0o600),
        }
        assert await in_thread(lambda: listing(it.path / "by-name")) == {
            "org.example.0": (stat.S_IFLNK, 0o777)
        }
        link = it.path / "by-name" / "org.example.0"
        assert await in_thread(lambda: os.readlink(link)) == "../vcon0"
        assert await it.run("echo hi > by-name/org.example.0; ls") == "by-name\nvcon0\nvcon1\n"


async def test_owner_and_mode_are_what_was_asked_for(mounted: OpenMount) -> None:
    async with mounted(access=Access(mode=0o666, uid=1234, gid=4321)) as it:
        status = await in_thread(lambda: os.stat(it.file()))
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o666)


async def test_only_ports_make_and_remove_names(mounted: OpenMount) -> None:
    async with mounted() as it:
        path = it.path / "new"
        for call in (
            lambda: os.mknod(path, stat.S_IFREG | 0o600),
            lambda: os.symlink("x", path),
            lambda: os.unlink(it.file()),
        ):
            assert await error_of(call) == errno.EPERM
        for refused in (
            lambda: os.mkdir(path),
            lambda: os.rename(it.file(), path),
            lambda: os.link(it.file(), path),
            lambda: os.open(path, os.O_CREAT | os.O_WRONLY),
        ):
            assert await error_of(refused) in (errno.ENOSYS, errno.EPERM)
        assert await error_of(lambda: os.stat(path)) == errno.ENOENT


@pytest.mark.parametrize("name", ["vcon00", "vcon-1", "vcon1", "vcon", "VCON0", "vcon0x", "x"])
async def test_other_names_are_not_there(mounted: OpenMount, name: str) -> None:
    async with mounted() as it:
        assert await error_of(lambda: os.stat(it.path / name)) == errno.ENOENT


#: a port's name -> the link's
NAMES = {
    b"plain": b"plain",
    b"a/b": b"a%2Fb",
    b"..": b"%2E%2E",
    b".": b"%2E",
    b"...": b"...",
    b"../../etc/passwd": b"..%2F..%2Fetc%2Fpasswd",
    b"50%": b"50%25",
    b"nul\0nul": b"nul%00nul",
    b"\xff\xfe": b"\xff\xfe",
    b"with space": b"with space",
    "ü€".encode(): "ü€".encode(),
    b"x" * 255: b"x" * 255,
}


async def test_links_by_name_never_leave_their_folder(mounted: OpenMount) -> None:
    async with mounted("first=echo") as it:
        links = {name: link for name, link in NAMES.items() if it.side == "guest" or 0 not in name}
        for port_id, name in enumerate(links, 1):
            await it.host.add(parse_port(f"x=echo,id={port_id}"))
            await it.until(
                lambda port_id=port_id: (  # type: ignore[misc]
                    port_id in it.manager.ports and it.port(port_id).name == b"x"
                )
            )
            if b"\0" in name:  # not from our host end
                it.manager.rename(it.port(port_id), name)
            else:
                it.host.rename(port_id, name)
            await it.until(lambda port_id=port_id, name=name: it.port(port_id).name == name)  # type: ignore[misc]
        by_name = os.fsencode(it.path / "by-name")
        names = await in_thread(lambda: set(os.listdir(by_name)))
        assert names == {*links.values(), b"first"}
        for port_id, (name, link) in enumerate(links.items(), 1):
            path = os.path.join(by_name, link)
            assert await in_thread(lambda path=path: os.readlink(path)) == b"../vcon%d" % port_id  # type: ignore[misc]
            assert await in_thread(lambda path=path: os.getxattr(path, b"name")) == name  # type: ignore[misc]


async def test_a_name_that_is_too_long_for_a_file_has_a_link_that_is_cut(
    mounted: OpenMount,
) -> None:
    async with mounted("x=echo") as it:
        it.host.rename(0, b"n" * 4080)
        (link,) = await in_thread(lambda: os.listdir(it.path / "by-name"))
        assert link.startswith("n" * 230)
        assert await in_thread(lambda: os.readlink(it.path / "by-name" / link)) == "../vcon0"
        assert await in_thread(lambda: os.getxattr(it.file(), "name")) == b"n" * 4080


@pytest.mark.expect_log("have the same name")
async def test_of_two_ports_with_one_name_the_lower_has_the_link(mounted: OpenMount) -> None:
    async with mounted("same=echo", "same=echo") as it:
        link = it.path / "by-name" / "same"
        assert await in_thread(lambda: os.readlink(link)) == "../vcon0"
        it.host.remove(0)
        assert await in_thread(lambda: os.readlink(link)) == "../vcon1"


async def test_attributes(mounted: OpenMount) -> None:
    async with mounted("org.example=echo", "=echo") as it:
        queued = "getfattr --only-values -n user.queued vcon0"
        await it.run(
            "exec 3<>$P; echo hello >&3; read -r a <&3; "
            f"echo unread >&3; until [ $({queued}) = 7 ]; do :; done"
        )
        for name, value in {
            "name": b"org.example",
            "user.name": b"org.example",
            "user.id": b"0",
            "user.console": b"0",
            f"user.{it.other_side}": b"1",
            "user.openers": b"",
            "user.throttled": b"0",
            f"user.{it.side}_throttled": b"0",
            "user.queued": b"0",
            "user.limit": b"1048576",
            "user.cache": b"0",
            "user.bytes_in": b"13",
            "user.bytes_out": b"13",
        }.items():
            got = await in_thread(lambda name=name: os.getxattr(it.file(), name))  # type: ignore[misc]
            assert got == value, name
        assert "getfattr" not in await it.run("getfattr -d vcon0 2>&1")
        assert 'user.name="org.example"' in await it.run("getfattr -d vcon0")
        assert await it.run("getfattr --only-values -n name vcon0") == "org.example"
        # A port without a name has no name attribute.
        for name in ("name", "user.name"):
            call = lambda name=name: os.getxattr(it.file(1), name)  # noqa: E731
            assert await error_of(call) == errno.ENODATA
        assert "name" not in await in_thread(lambda: os.listxattr(it.file(1)))
        assert await error_of(lambda: os.setxattr(it.file(), "user.name", b"x")) == errno.EPERM
        assert await error_of(lambda: os.removexattr(it.file(), "name")) == errno.EPERM
        assert await error_of(lambda: os.getxattr(it.file(), "user.nonsense")) == errno.ENODATA


async def test_all_attributes_come_at_once_as_json(mounted: OpenMount) -> None:
    async with mounted("=echo") as it:
        it.manager.rename(it.port(), b"not \xff text")
        file = it.file()
        listed = await in_thread(
            lambda: {name: os.getxattr(file, name) for name in os.listxattr(file)}
        )
        whole = json.loads(await in_thread(lambda: os.getxattr(file, "user.status")))
        assert whole["name"] == r"not \xff text"
        assert whole == {
            name.removeprefix("user."): value.decode(errors="backslashreplace")
            for name, value in listed.items()
        }


@pytest.mark.expect_log("device: no such port")
async def test_the_root_counts_messages_for_no_port(mounted: OpenMount) -> None:
    async with mounted() as it:
        assert await in_thread(lambda: os.getxattr(it.path, "user.ignored")) == b"0"
        it.manager.ignore(99, "no such port")
        assert await in_thread(lambda: os.getxattr(it.path, "user.ignored")) == b"1"
        assert await in_thread(lambda: os.getxattr(it.path, "user.pid")) == b"%d" % os.getpid()
        assert await error_of(lambda: os.getxattr(it.path, "user.id")) == errno.ENODATA


async def test_inotify_reports_ports_that_come_go_and_change(mounted: OpenMount) -> None:
    async with mounted("first=echo") as it:
        await it.until(lambda: it.manager.by_name(b"first"))
        with INotify() as root, INotify() as links:
            mask = flags.CREATE | flags.DELETE | flags.ATTRIB
            await in_thread(lambda: root.add_watch(it.path, mask))
            await in_thread(lambda: links.add_watch(it.path / "by-name", mask))
            await it.host.add(parse_port("second=echo"))
            assert await next_notice(root, flags.CREATE) == "vcon1"
            assert await next_notice(links, flags.CREATE) == "second"
            it.host.rename(1, b"renamed")
            assert await next_notice(root, flags.ATTRIB) == "vcon1"
            assert await next_notice(links, flags.DELETE) == "second"
            assert await next_notice(links, flags.CREATE) == "renamed"
            it.host.remove(1)
            assert await next_notice(root, flags.DELETE) == "vcon1"
            assert await next_notice(links, flags.DELETE) == "renamed"


async def test_on_the_present_folder_ports_are_announced_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = PortManager()
    async with open_host([parse_port("first=echo")]) as host, drive(manager, open_embedded(host)):
        monkeypatch.chdir(tmp_path)
        async with open_mount(Plan(Path()), manager):
            with INotify() as root, trio.fail_after(10):
                await in_thread(lambda: root.add_watch(tmp_path, flags.CREATE))
                await host.add(parse_port("second=echo"))
                assert await next_notice(root, flags.CREATE) == "vcon1"
    assert os.listdir(tmp_path) == []


@pytest.mark.guest_side("the folder of a guest is not there below the mount")
async def test_what_lies_below_a_mount_is_left_alone_after_a_lazy_unmount(
    mounted: OpenMount,
) -> None:
    async with mounted("first=echo", "second=echo") as it:
        fd = await in_thread(lambda: os.open(it.file(), os.O_RDWR))
        await in_thread(lambda: fuse.unmount(it.path, lazy=True))
        it.file(1).write_text("mine")
        it.host.remove(1)
        await it.host.add(parse_port("third=echo,id=2"))
        await it.until(lambda: announcer(it)._more)  # it has done all
        await in_thread(lambda: os.write(fd, b"still served"))
        assert os.listdir(it.path) == ["vcon1"]
        it.file(1).unlink()
        await in_thread(lambda: os.close(fd))


def announcer(it: Mounted) -> Announcer:
    return next(one._announcer for one in it.manager.observers if isinstance(one, NameChanges))


async def next_notice(watch: INotify, kind: int) -> str:
    """Return the name of the next notice of a kind."""
    while True:
        await trio.lowlevel.wait_readable(watch)
        for event in watch.read(timeout=0):
            if event.mask & kind:
                assert isinstance(event.name, str)
                return event.name


async def test_a_port_can_be_used_while_it_is_being_announced(
    mounted: OpenMount,
) -> None:
    async with mounted() as it:
        for _ in range(20):
            port = await it.host.add(parse_port("late=echo"))
            await it.until(lambda: it.manager.by_name(b"late"))
            assert await error_of(lambda: os.stat(it.path / "by-name" / "late")) is None
            assert await error_of(lambda port_id=port.id: os.stat(it.file(port_id))) is None  # type: ignore[misc]
            it.host.remove(port.id)
            await it.until(lambda: not it.manager.by_name(b"late"))
            assert await error_of(lambda port_id=port.id: os.stat(it.file(port_id))) == errno.ENOENT  # type: ignore[misc]


async def test_five_hundred_ports(mounted: OpenMount) -> None:
    async with mounted() as it:
        for port_id in range(1, 500):
            await it.host.add(parse_port(f"p{port_id}=null,id={port_id}"))
        await it.until(lambda: it.manager.by_name(b"p499"))
        assert (
            len(await in_thread(lambda: os.listdir(it.path))) == 503
        )  # by-name and .events and .tap too
        assert len(await in_thread(lambda: os.listdir(it.path / "by-name"))) == 500
        assert await it.run("ls -l | wc -l") == "502\n"


# --- the same under pyfuse3.main() --------------------------------------------------------


@asynccontextmanager
async def served_by(module: str, path: Path) -> AsyncIterator[Path]:
    """Mount by the command, in a process of its own: pyfuse3 keeps global state."""
    path.mkdir()
    ports = [f"--port=port.{port_id}=null" for port_id in range(300)]
    command = (sys.executable, "-m", module, "mount", "-f", *ports)
    async with program(*command, "-o", "mode=0640,uid=7,gid=9", str(path)) as daemon:
        with trio.fail_after(20):
            while not await in_thread(lambda: os.path.exists(path / "vcon299")):
                assert daemon.returncode is None
                await trio.sleep(0.01)
            try:
                yield path
            finally:
                daemon.terminate()
                await daemon.wait()


def answers(path: Path) -> dict[str, object]:
    """Return answers of the file system that must be the same with each session."""
    found: dict[str, object] = {}
    for folder in (path, path / "by-name"):
        for entry in os.scandir(folder):
            where = Path(folder, entry.name)
            status = os.lstat(where)
            key = str(where.relative_to(path))
            found[key] = (entry.inode(), *status[:2], *status[3:7])  # not the device number
            if entry.is_symlink():
                found[key + " link"] = os.readlink(where)
    for port_id in (0, 17, 299):
        file = path / f"vcon{port_id}"
        found[f"{port_id} attributes"] = {
            name: os.getxattr(file, name) for name in sorted(os.listxattr(file))
        }
    tries: dict[str, Callable[[], object]] = {
        "no such port": lambda: os.open(path / "vcon300", os.O_RDWR),
        "no such name": lambda: os.stat(path / "nothing"),
        "no such attribute": lambda: os.getxattr(path / "vcon0", "user.no"),
        "setxattr": lambda: os.setxattr(path / "vcon0", "user.name", b"x"),
        "mkdir": lambda: os.mkdir(path / "folder"),
        "create": lambda: os.open(path / "file", os.O_CREAT | os.O_RDWR),
        "unlink": lambda: os.unlink(path / "vcon0"),
        "chmod": lambda: os.chmod(path / "vcon0", 0o777),
        "seek": lambda: os.lseek(os.open(path / "vcon0", os.O_RDWR), 0, os.SEEK_SET),
        "statfs": lambda: os.statvfs(path)[:6],
    }
    for what, call in tries.items():
        try:
            found[what] = call()
        except OSError as error:
            found[what] = errno.errorcode[error.errno or 0]
    return found


async def test_libfuse_and_our_session_give_the_same_answers(tmp_path: Path) -> None:
    results = []
    for module in ("vconfs", "tests.mount.stock"):
        async with served_by(module, tmp_path / module) as path:
            results.append(await in_thread(lambda path=path: answers(path)))  # type: ignore[misc]
    ours, theirs = results
    assert {key: (ours.get(key), theirs.get(key)) for key in ours | theirs} == {
        key: (value, value) for key, value in ours.items()
    }
    assert len(ours) > 600

"""Mounting, unmounting, and what goes wrong with either."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support import needs
from vconfs import fuse
from vconfs.errors import VconfsError
from vconfs.fuse import listed

from .conftest import Serve, heard, program
from .ports import Ports

ROOT = Path(__file__).parents[2]
#: Where the kernel lets a FUSE connection be aborted.
#: By this way, for `fuse.mount` is the function.
module = importlib.import_module("vconfs.fuse._mountpoint")

#: Mounts by the folder that is its argument, says so, and serves until unmounted.
SERVER = """
import sys, trio
from pathlib import Path
from tests.fuse.ports import Ports
from vconfs import fuse

async def main(mountpoint):
    mount = fuse.mount(mountpoint, source="a,b\\\\c")
    print("mounted", flush=True)
    try:
        await fuse.Session(Ports(), mount.device).run()
    finally:
        mount.close()

try:
    trio.run(main, Path(sys.argv[1]))
except fuse.MountError as error:
    print(error)
"""


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while str(path) in mountinfo():
        fuse.unmount(path, lazy=True)  # umount(8) would ask a file system without a server


# --- as root ------------------------------------------------------------------------------


def test_a_mount_has_its_type_source_and_options(place: Path) -> None:
    mount = fuse.mount(place, source="embedded", allow_other=True)
    (line,) = [line for line in mountinfo().splitlines() if str(place) in line]
    fields, _, rest = line.partition(" - ")
    assert {"nosuid", "nodev"} <= set(fields.split()[5].split(","))
    assert rest.startswith("fuse.vconfs embedded rw,")
    assert {"default_permissions", "allow_other"} <= set(rest.split(","))
    assert not os.get_blocking(mount.device)
    assert not os.get_inheritable(mount.device)
    assert fuse.is_mounted(place)
    mount.close()
    assert not fuse.is_mounted(place)


def test_closing_twice_is_no_error_and_hits_nothing_else(place: Path) -> None:
    mount = fuse.mount(place)
    mount.close()
    other = os.open("/dev/null", os.O_RDONLY)
    mount.close()
    os.fstat(other)
    os.close(other)


def test_closing_leaves_alone_what_others_have_mounted_there_since(place: Path) -> None:
    mount = fuse.mount(place)
    fuse.unmount(place)
    run("mount", "-t", "tmpfs", "somebody-elses", str(place))  # it gets the same number
    mount.close()
    assert f"{place} " in mountinfo()
    run("umount", str(place))


async def test_closing_leaves_alone_another_vconfs_mount(place: Path) -> None:
    mount = fuse.mount(place)
    fuse.unmount(place)
    async with program("env", "-C", str(ROOT), sys.executable, "-c", SERVER, str(place)) as server:
        assert await heard(server) == b"mounted\n"
        mount.close()
        assert fuse.is_mounted(place)
        fuse.unmount(place)
        assert await server.wait() == 0


@pytest.fixture
def connections(tmp_path: Path) -> Iterator[Path]:
    """The kernel's control files of all FUSE mounts, mounted in a folder of its own."""
    folder = tmp_path / "connections"
    folder.mkdir()
    run("mount", "-t", "fusectl", "none", str(folder))
    yield folder
    run("umount", str(folder))


def test_closing_takes_an_aborted_mount_away(place: Path, connections: Path) -> None:
    mount = fuse.mount(place)
    (connections / mount.number.partition(":")[2] / "abort").write_text("1")
    mount.close()
    assert not fuse.is_mounted(place)


async def test_a_mount_that_is_taken_away_before_it_is_served(
    place: Path, nursery: trio.Nursery
) -> None:
    mount = fuse.mount(place)
    fuse.unmount(place)
    session = fuse.Session(Ports(), mount.device)
    with pytest.raises(fuse.MountError, match="unmounted before"):
        await nursery.start(session.run)
    mount.close()


def test_a_place_with_odd_characters_and_a_symlink_to_it(tmp_path: Path) -> None:
    odd = tmp_path / "a b\\c,d\té"
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    mount = fuse.mount(tmp_path / "link")
    try:
        assert fuse.is_mounted(odd)
    finally:
        mount.close()
    assert not fuse.is_mounted(odd)


def test_unmounting_what_is_not_mounted_is_an_oserror(place: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        fuse.unmount(place)


def test_a_line_of_mountinfo_is_ours_by_place_and_type() -> None:
    text = (
        b"41 27 0:39 / /mnt/a\\040b rw,nosuid shared:5 - fuse.vconfs embedded rw\n"
        b"42 27 0:40 / /mnt/c rw - fuse.vconfs2 x rw\n"
    )
    assert listed(text, Path("/mnt/a b"))
    assert not listed(text, Path("/mnt/a"))
    assert not listed(text, Path("/mnt/c"))


def test_any_byte_can_be_in_the_place_of_another_mount() -> None:
    text = (
        b"41 27 0:39 / /mnt/a\rb\xff\x85 rw - tmpfs x\xa0y rw\n"
        b"42 27 0:40 / /mnt/c\r\xc2\xa0\\134 rw master:1 - fuse.vconfs embedded rw\n"
    )
    assert listed(text, Path("/mnt/c\r\xa0\\"))
    assert not listed(text, Path("/mnt/c"))


# --- errors -------------------------------------------------------------------------------


def refusal(path: Path, *, allow_other: bool = False) -> str:
    with pytest.raises(fuse.MountError) as caught:
        fuse.mount(path, allow_other=allow_other)
    assert isinstance(caught.value, VconfsError)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no") == f"{tmp_path}/no does not exist: make the folder first"


def test_what_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file") == f"{tmp_path}/file is not a folder"


def test_a_folder_that_is_not_empty_unless_told_so(place: Path) -> None:
    (place / "file").touch()
    assert refusal(place) == f"{place} is not empty: mount on an empty folder"
    fuse.mount(place, nonempty=True).close()
    assert (place / "file").exists()


async def test_a_place_that_is_mounted_already(serve: Serve) -> None:
    async with serve() as it:
        text = await trio.to_thread.run_sync(refusal, it.path, abandon_on_cancel=True)
        assert text.startswith(f"{it.path} has a vconfs mount already: ")


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("/nowhere/fuse", "there is no /nowhere/fuse: load the kernel's module"),
        ("/etc/passwd/fuse", "/etc/passwd/fuse: Not a directory: is the kernel's"),
    ],
)
def test_no_device(place: Path, monkeypatch: pytest.MonkeyPatch, device: str, text: str) -> None:
    monkeypatch.setattr(module, "_DEVICE", device)
    assert refusal(place).startswith(text)
    assert not fuse.is_mounted(place)


def test_a_mount_that_the_kernel_refuses_leaks_no_descriptor(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TYPE", "no_such_type")
    before = os.listdir("/proc/self/fd")
    assert refusal(place) == f"cannot mount on {place}: No such device"
    assert os.listdir("/proc/self/fd") == before


# --- /dev/fd/N ----------------------------------------------------------------------------


async def test_a_device_that_another_user_has_mounted(place: Path) -> None:
    """As `mount.fuse3 -o drop_privileges` does: it mounts, and hands the descriptor over."""
    theirs = fuse.mount(place)
    device = os.dup(theirs.device)
    os.set_inheritable(device, True)
    os.set_blocking(device, True)
    mount = fuse.mount(Path(f"/dev/fd/{device}"))
    try:
        assert (mount.device, mount.mountpoint) == (device, None)
        assert not os.get_blocking(device)
        assert not os.get_inheritable(device)
        async with trio.open_nursery() as nursery:
            await nursery.start(fuse.Session(Ports(), mount.device).run)
            done = await trio.run_process(["ls", str(place)], capture_stdout=True)
            assert done.stdout == b"p0\n"
            mount.close()
            assert fuse.is_mounted(place)  # it is theirs to unmount
            nursery.cancel_scope.cancel()
    finally:
        theirs.close()


def test_a_device_that_is_standard_input(place: Path) -> None:
    """It gets another number: a daemon replaces its standard streams."""
    kept = os.dup(0)
    theirs = fuse.mount(place)
    try:
        os.dup2(theirs.device, 0)
        mount = fuse.mount(Path("/dev/fd/0"))
        assert mount.device > 2
        assert os.path.samestat(os.fstat(mount.device), os.fstat(theirs.device))
        assert os.readlink("/proc/self/fd/0") == os.devnull
        mount.close()
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        theirs.close()


def test_a_descriptor_that_is_not_open() -> None:
    assert refusal(Path("/dev/fd/999")).startswith("/dev/fd/999: Bad file descriptor")


def test_a_descriptor_of_something_else() -> None:
    with open("/dev/null") as null:
        text = refusal(Path(f"/dev/fd/{null.fileno()}"))
        assert "is not /dev/fuse" in text
        assert os.get_inheritable(null.fileno()) is False


# --- dead mounts --------------------------------------------------------------------------


async def test_mounting_clears_what_a_killed_daemon_has_left(place: Path) -> None:
    async with program("env", "-C", str(ROOT), sys.executable, "-c", SERVER, str(place)) as server:
        assert await heard(server) == b"mounted\n"
        # Now the kernel knows the attributes of the folder for minutes, dead or alive.
        await trio.run_process(["stat", str(place)], capture_stdout=True)
        os.kill(server.pid, signal.SIGKILL)
        await server.wait()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(place)
    mount = fuse.mount(place)
    assert mountinfo().count(f" {place} ") == 1
    mount.close()
    assert os.listdir(place) == []


def test_a_dead_mount_that_cannot_be_cleared(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.close(fuse.mount(place).device)  # now it is dead

    def refuse(place: Path, *, lazy: bool = False) -> None:
        raise PermissionError(1, "not yours")

    monkeypatch.setattr(module, "unmount", refuse)
    assert refusal(place) == (
        f"{place} has a dead vconfs mount that cannot be cleared (not yours):"
        f" `umount -l {place}` as root"
    )


# --- as another user, by fusermount3 ------------------------------------------------------


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    """A folder that the user `nobody` may mount on; pytest's folders are closed to others."""
    needs.other_users()
    folder = Path(tempfile.mkdtemp(prefix="vconfs-nobody-"))
    try:
        folder.chmod(0o755)
        (folder / "mnt").mkdir()
        shutil.chown(folder / "mnt", "nobody")
        yield folder
    finally:
        while str(folder) in mountinfo():
            fuse.unmount(folder / "mnt", lazy=True)
        shutil.rmtree(folder)


def as_nobody(folder: Path, script: str, *, device: str = "fuse", path: str = "/usr/bin") -> str:
    """Run a script as the user `nobody`, in a mount namespace with a /dev/fuse for all."""
    node = folder / device
    os.mknod(node, 0o20666, os.makedev(10, 229))
    node.chmod(0o666 if device == "fuse" else 0o600)
    prepare = f'mount --bind {node} /dev/fuse; exec "$@"'
    return run(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", prepare, "sh"),
        *("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"),
        *("env", f"PATH={path}", sys.executable, "-c", script, str(folder / "mnt")),
    )


needs_fusermount = pytest.mark.skipif(
    not (shutil.which("fusermount3") and os.geteuid() == 0),
    reason="needs fusermount3, and root to become another user",
)

BY_HELPER = (
    SERVER.rpartition("try:\n    trio.run")[0].replace('print("mounted", flush=True)', "")
    + """
import os, subprocess, threading

async def use(mountpoint):
    mount = fuse.mount(mountpoint, source="a,b\\\\c")
    assert not os.get_inheritable(mount.device)
    async with trio.open_nursery() as nursery:
        await nursery.start(fuse.Session(Ports(), mount.device).run)
        for command in ("ls", "findmnt -n -o FSTYPE,SOURCE"):
            done = await trio.run_process([*command.split(), mountpoint], capture_stdout=True)
            print(done.stdout.decode().strip())
        await trio.to_thread.run_sync(fuse.unmount, mountpoint)
    mount.close()
    print(fuse.is_mounted(mountpoint))
    os.close(fuse.mount(mountpoint).device)  # it is dead now
    again = fuse.mount(mountpoint)
    again.close()
    print(fuse.is_mounted(mountpoint))

try:
    trio.run(use, Path(sys.argv[1]))
except fuse.MountError as error:
    print(error)
"""
)


@needs_fusermount
def test_another_user_mounts_by_fusermount3(folder_of_nobody: Path) -> None:
    lines = as_nobody(folder_of_nobody, BY_HELPER).splitlines()
    assert lines == ["p0", r"fuse.vconfs a,b\c", "False", "False"]


@needs_fusermount
def test_another_user_on_a_folder_of_others(folder_of_nobody: Path) -> None:
    shutil.chown(folder_of_nobody / "mnt", "root")
    text = as_nobody(folder_of_nobody, BY_HELPER)
    assert text == (
        f"cannot mount on {folder_of_nobody}/mnt: user has no write access to mountpoint"
        f" {folder_of_nobody}/mnt"
    )


@needs_fusermount
def test_another_user_without_fusermount3(folder_of_nobody: Path) -> None:
    text = as_nobody(folder_of_nobody, BY_HELPER, path="/nowhere")
    assert text == "fusermount3 is not installed: it is in the package fuse3"


@needs_fusermount
def test_another_user_who_may_not_open_the_device(folder_of_nobody: Path) -> None:
    text = as_nobody(folder_of_nobody, BY_HELPER, device="locked")
    assert text.startswith("no permission to open /dev/fuse: as root, `chmod 666 /dev/fuse`")

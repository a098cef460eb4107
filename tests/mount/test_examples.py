"""The examples run as they are, against a mount."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.support.threads import in_thread
from vconfs.host.spec import parse_port

from .conftest import Mounted, OpenMount, program
from .examples import EXAMPLES, kill_session, needs_inotifywait, next_line
from .test_commands import folder, vconfs

__all__ = ["folder"]  # a fixture


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing() -> None:
    """Of the examples, and of every other shell script here."""
    folders = (EXAMPLES.parent / name for name in ("examples", "scripts", "tests", ".ci"))
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    scripts = [file for file in files if is_shell_script(file)]
    assert set(EXAMPLES.glob("*.sh")) <= set(scripts)
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def is_shell_script(file: Path) -> bool:
    with file.open("rb") as lines:
        first = lines.readline()
    return first.startswith(b"#!") and first.split(b"/")[-1].split()[-1] in (b"sh", b"bash")


def links(folder: Path) -> dict[str, str]:
    found = {}
    for path in folder.iterdir():
        with suppress(OSError):  # it is no link, or goes at this very moment
            found[path.name] = path.readlink().name
    return found


async def changes_to(folder: Path, wanted: dict[str, str], it: Mounted) -> None:
    """Wait until the links are those."""
    with trio.move_on_after(10):
        await it.until(lambda: folder.is_dir() and links(folder) == wanted)
    assert links(folder) == wanted


@asynccontextmanager
async def linking(it: Mounted, shell: list[str], folder: Path) -> AsyncIterator[trio.Process]:
    script = EXAMPLES / "udev-links.sh"
    async with program("setsid", *shell, str(script), str(it.path), str(folder)) as running:
        try:
            yield running
        finally:
            await kill_session(running)


@needs_inotifywait
@pytest.mark.expect_log("have the same name")
async def test_links_by_name_follow_hot_plug_renaming_and_removal(
    mounted: OpenMount, tmp_path: Path, shell: list[str]
) -> None:
    folder = tmp_path / "links"
    async with mounted("org.a=echo", "=echo", "dir/100%=echo") as it:
        async with linking(it, shell, folder):
            first = {"org.a": "vcon0", "dir%2F100%25": "vcon2"}
            await changes_to(folder, first, it)
            await it.host.add(parse_port("new=echo"))
            await changes_to(folder, {**first, "new": "vcon3"}, it)
            it.host.rename(3, b"renamed")
            await changes_to(folder, {**first, "renamed": "vcon3"}, it)
            it.host.rename(1, b"org.a")  # the one with the lowest number keeps it
            it.manager.remove(3)
            await changes_to(folder, first, it)
            it.manager.remove(0)
            await changes_to(folder, {"org.a": "vcon1", "dir%2F100%25": "vcon2"}, it)
            assert await in_thread((folder / "org.a").exists)


@needs_inotifywait
async def test_files_that_are_not_links_are_left_alone(
    mounted: OpenMount, tmp_path: Path, shell: list[str]
) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "taken").write_text("precious")
    async with mounted("taken=echo", "free=echo") as it, linking(it, shell, folder):
        await changes_to(folder, {"free": "vcon1"}, it)
        assert (folder / "taken").read_text() == "precious"


@needs_inotifywait
async def test_the_links_go_with_the_mount(mounted: OpenMount, tmp_path: Path) -> None:
    folder = tmp_path / "links"
    async with mounted("a=echo") as it, linking(it, ["dash"], folder) as running:
        await changes_to(folder, {"a": "vcon0"}, it)
        await trio.run_process(["umount", "-l", str(it.mountpoint)])
        with trio.fail_after(10):
            assert await running.wait() == 0
        assert links(folder) == {}


@needs_inotifywait
async def test_a_service_manager_ends_the_links_in_order(
    mounted: OpenMount, tmp_path: Path, shell: list[str]
) -> None:
    """Its SIGTERM comes before or after the end of the mount."""
    folder = tmp_path / "links"
    async with mounted("a=echo") as it, linking(it, shell, folder) as running:
        await changes_to(folder, {"a": "vcon0"}, it)
        running.terminate()
        with trio.fail_after(10):
            assert await running.wait() == 0
        assert links(folder) == {"a": "vcon0"}
        assert list(folder.glob(".events*")) == []


def unit_command(mountpoint: str, folder: str) -> list[str]:
    """What the unit starts, with other paths."""
    paths = {
        "/usr/local/libexec/udev-links.sh": str(EXAMPLES / "udev-links.sh"),
        "/mnt/vcon": mountpoint,
        "/dev/vcon": folder,
    }
    lines = (EXAMPLES / "udev-links.service").read_text().splitlines()
    (command,) = (line for line in lines if line.startswith("ExecStart="))
    return [paths[word] for word in command.removeprefix("ExecStart=").split()]


@needs_inotifywait
async def test_the_links_unit_starts_the_script_as_it_is(
    mounted: OpenMount, tmp_path: Path
) -> None:
    folder = tmp_path / "links"
    async with mounted("org.a=echo") as it:
        async with program("setsid", *unit_command(str(it.path), str(folder))) as running:
            await changes_to(folder, {"org.a": "vcon0"}, it)
            await kill_session(running)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_links_unit(tmp_path: Path) -> None:
    unit = tmp_path / "udev-links.service"
    text = (EXAMPLES / unit.name).read_text()
    unit.write_text(text.replace("/usr/local/libexec", str(EXAMPLES)))
    (tmp_path / "mnt-vcon.mount").write_text("[Mount]\nWhat=none\nWhere=/mnt/vcon\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_folder_that_is_no_mount_is_refused(tmp_path: Path, shell: list[str]) -> None:
    script = str(EXAMPLES / "udev-links.sh")
    for arguments, code in (([], 2), ([str(tmp_path), str(tmp_path)], 1)):
        done = await trio.run_process(
            [*shell, script, *arguments], check=False, capture_stdout=True, capture_stderr=True
        )
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["chat", "clipboard", "who"])
def test_opening_a_missing_port_makes_no_file(tmp_path: Path, shell: list[str], name: str) -> None:
    port = tmp_path / "typo"
    words = [*shell, str(EXAMPLES / f"{name}.sh"), str(port)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, done.stderr) == (1, f"{name}.sh: {port} does not exist\n")
    assert not port.exists()


# --- who ----------------------------------------------------------------------------------


def utmp_entry(user: str) -> bytes:
    """A USER_PROCESS record of utmp(5)."""
    head = struct.pack("hi32s4s32s256s", 7, os.getpid(), b"pts/0", b"ts/0", user.encode(), b"")
    return head.ljust(384, b"\0")


@needs_inotifywait
async def test_who_sends_the_host_each_change(
    mounted: OpenMount, tmp_path: Path, shell: list[str]
) -> None:
    utmp = tmp_path / "utmp"
    utmp.write_bytes(utmp_entry("alice"))
    async with mounted(f"who=unix:{tmp_path}/sock") as it:
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await it.until(lambda: it.port().host_connected)
            script = [*shell, str(EXAMPLES / "who.sh"), str(it.file()), str(utmp)]
            async with program("setsid", *script) as running:
                assert await next_line(host) == "alice"
                utmp.write_bytes(utmp_entry("bob") + utmp_entry("alice") + utmp_entry("bob"))
                while (line := await next_line(host)) != "alice bob":
                    assert line in ("", "bob")  # the file was being written
                utmp.write_bytes(b"")
                assert await next_line(host) == ""
                await kill_session(running)


@needs_inotifywait
async def test_who_needs_no_utmp_where_systemd_knows_the_users(
    mounted: OpenMount, tmp_path: Path, shell: list[str]
) -> None:
    users = tmp_path / "users"
    users.mkdir()
    (users / ".#temporary").touch()
    async with mounted(f"who=unix:{tmp_path}/sock") as it:
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await it.until(lambda: it.port().host_connected)
            script = [*shell, str(EXAMPLES / "who.sh"), str(it.file()), str(users)]
            async with program("setsid", *script) as running:
                assert await next_line(host) == ""
                (users / "0").touch()
                assert await next_line(host) == "root"
                (users / "0").unlink()
                assert await next_line(host) == ""
                await kill_session(running)


# --- what is missing ----------------------------------------------------------------------

#: Example → what it says where only the shell and the standard commands are installed.
LACKS = {
    "who.sh /dev/null": "who.sh: install inotify-tools",
    "clipboard.sh /dev/null": "clipboard.sh: install wl-clipboard, xclip or inotify-tools",
    "udev-links.sh / /": "udev-links.sh: inotifywait is missing: install inotify-tools and attr",
    "guest-agent.sh /dev/null": "guest-agent.sh: install qemu-guest-agent",
}


@pytest.mark.parametrize("command", LACKS)
def test_an_example_says_which_program_is_missing(
    command: str, tmp_path: Path, shell: list[str]
) -> None:
    for tool in ("rm", "mktemp", "mkfifo", "sh"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    script, *words = command.split()
    done = subprocess.run(
        [shutil.which(shell[0]) or shell[0], *shell[1:], str(EXAMPLES / script), *words],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (1, LACKS[command] + "\n")


@pytest.mark.parametrize("script", ["host-info.py", "lock-session.py"])
def test_an_example_outside_the_virtual_environment_says_what_is_missing(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(EXAMPLES / script)],  # -S: no installed packages
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"{script}: No module named ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["bus.py", "guest-inspect.py"])
def test_an_example_without_packages_runs_anywhere(script: str) -> None:
    words = [sys.executable, "-I", "-S", str(EXAMPLES / script)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    assert done.stderr.startswith("usage: ")


# --- chat ---------------------------------------------------------------------------------


async def test_chat_goes_both_ways(mounted: OpenMount, tmp_path: Path, shell: list[str]) -> None:
    chat = str(EXAMPLES / "chat.sh")
    async with mounted(f"chat=pipe:{tmp_path}/chat") as it:
        guest_words = ["env", "CHAT_NAME=guest", *shell, chat, str(it.path / "by-name/chat")]
        host_words = ["env", "CHAT_NAME=host", *shell, chat, f"{tmp_path}/chat.out"]
        async with (
            program(*guest_words, stdin=subprocess.PIPE) as guest,
            program(*host_words, f"{tmp_path}/chat.in", stdin=subprocess.PIPE) as host,
        ):
            assert guest.stdin and guest.stdout and host.stdin and host.stdout
            await it.until(lambda: len(it.port().openers) == 2)
            await guest.stdin.send_all(b"hello, host\n")
            assert await host.stdout.receive_some() == b"guest: hello, host\n"
            await host.stdin.send_all(b"hello, guest\n")
            assert await guest.stdout.receive_some() == b"host: hello, guest\n"
            for process in (guest, host):
                assert process.stdin
                await process.stdin.aclose()
                assert await process.wait() == 0


# --- looking into the guest ---------------------------------------------------------------


async def test_ctrl_c_ends_a_look_into_the_guest_without_a_traceback(mounted: OpenMount) -> None:
    script = str(EXAMPLES / "guest-inspect.py")
    async with (
        mounted("inspect=echo", wait=True) as it,
        program(sys.executable, script, str(it.file())) as running,
    ):
        await it.until(lambda: it.port()._inbox.turn.locked())
        running.send_signal(signal.SIGINT)
        assert running.stdout is not None
        assert b"".join([data async for data in running.stdout]) == b""
        assert await running.wait() == -signal.SIGINT


def test_guest_inspect_ends_in_silence_at_a_normal_umount(folder: Path) -> None:
    vconfs("mount", "-o", "wait", "--port", "inspect=echo", str(folder))
    port, script = folder / "vcon0", str(EXAMPLES / "guest-inspect.py")
    words = [sys.executable, script, str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            deadline = time.monotonic() + 20
            while os.getxattr(port, "user.openers") == b"" and time.monotonic() < deadline:
                time.sleep(0.01)
            vconfs("umount", str(folder))
            assert running.communicate(timeout=20) == (b"", b"")
            assert running.returncode == 0
        finally:
            running.kill()


async def test_the_host_looks_into_the_guest(mounted: OpenMount, tmp_path: Path) -> None:
    script = str(EXAMPLES / "guest-inspect.py")
    async with mounted(f"inspect=unix:{tmp_path}/sock", wait=True) as it:
        async with program(sys.executable, script, str(it.file())):
            for _ in range(2):  # one host after the other
                async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                    await host.send_all(b"system\nfilesystems\npackages\nweather\n")
                    answers = [json.loads(await next_line(host)) for _ in range(4)]
                system, filesystems, packages, unknown = answers
                assert system["kernel"] == os.uname().release
                assert "/" in [filesystem["path"] for filesystem in filesystems]
                assert isinstance(packages, dict)
                assert "unknown question 'weather'" in unknown["error"]
                await it.until(lambda: not it.port().host_connected)

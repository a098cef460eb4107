"""Commands whose caller has closed standard input, output or error: all commands, each way."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import pytest

from tests.support.limits import LONG

from .test_commands import VCONFS, daemon_of, folder, mounts, vconfs, wait_for_end, wait_for_file

__all__ = ["folder"]

#: Ways to close some of the three: each alone and all, and in the long form each two as well.
CLOSED = [
    some for count in ((1, 2, 3) if LONG else (1, 3)) for some in combinations(range(3), count)
]
closed_ways = pytest.mark.parametrize(
    "closed", CLOSED, ids=lambda some: "".join(map(str, some)) + "-closed"
)


def closing(closed: tuple[int, ...], *words: str) -> list[str]:
    """Return a command line that runs a command of ours with these descriptors closed."""
    redirections = " ".join(f"{number}>&-" for number in closed)
    return ["bash", "-c", f'exec "$@" {redirections}', "bash", *VCONFS, *words]


def run(closed: tuple[int, ...], *words: str) -> tuple[int, str]:
    """Run a command to its end; return its exit code and what it could say on stderr."""
    done = subprocess.run(
        closing(closed, *words), capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@contextmanager
def running(closed: tuple[int, ...], *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(closing(closed, *words), stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def exchange(port: Path) -> None:
    """Send something to an echo and get it back."""
    with open(port, "r+b", buffering=0) as echo:
        assert echo.write(b"hello") == 5
        assert echo.read(5) == b"hello"


def standard_streams(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]


@closed_ways
def test_a_mount_in_the_background_can_be_used(folder: Path, closed: tuple[int, ...]) -> None:
    assert run(closed, "mount", "--port", "e=echo", str(folder)) == (0, "")
    assert standard_streams(daemon_of(folder)) == ["/dev/null"] * 3
    exchange(folder / "vcon0")
    daemon = os.pidfd_open(daemon_of(folder))
    assert run(closed, "umount", str(folder)) == (0, "")
    wait_for_end(daemon)
    assert mounts(folder) == []


@closed_ways
def test_a_mount_in_the_foreground_can_be_used(folder: Path, closed: tuple[int, ...]) -> None:
    with running(closed, "mount", "-f", "--port", "e=echo", str(folder)) as mount:
        wait_for_file(folder / "vcon0", mount)
        streams = standard_streams(mount.pid)
        assert [streams[number] for number in closed] == ["/dev/null"] * len(closed)
        exchange(folder / "vcon0")
        mount.terminate()
        assert mount.wait(20) == 0
    assert mounts(folder) == []


@closed_ways
def test_a_host_end_can_be_used(folder: Path, tmp_path: Path, closed: tuple[int, ...]) -> None:
    device, control = f"stream:unix:{tmp_path}/device", f"{tmp_path}/control"
    words = ("--listen", device, "--control", control, "--port", "e=echo")
    with running(closed, "host", *words) as host:
        wait_for_file(tmp_path / "device", host)
        assert run(closed, "ctl", control, "list") == (0, "")
        assert run(closed, "ctl", control, "add", "more=null") == (0, "")
        vconfs("mount", "--device", device, str(folder))
        exchange(folder / "vcon0")
        vconfs("umount", str(folder))
        host.terminate()
        assert host.wait(20) == 0
    assert not (tmp_path / "device").exists()


@closed_ways
def test_commands_about_a_mount(folder: Path, closed: tuple[int, ...]) -> None:
    vconfs("mount", "--port", "e=echo", "--port", "done=exec:echo hi", str(folder))
    assert run(closed, "ls", str(folder)) == (0, "")
    assert run(closed, "top", "--count", "1", str(folder)) == (0, "")
    assert run(closed, "watch", "--until", "connect=e", str(folder)) == (0, "")
    assert run(closed, "cat", "--write", f"{folder}/vcon0")[0] == 0
    # Data that could go nowhere is not even taken.
    reads = (1, "vconfs: standard output is closed: what comes from the port would be lost\n")
    wanted = reads if 2 not in closed else (1, "")
    for command in ("cat", "connect"):
        code, error = run(closed, command, f"{folder}/vcon1")
        assert (code, error) == (wanted if 1 in closed else (0, ""))
    vconfs("umount", str(folder))


@closed_ways
def test_commands_about_nothing_mounted(tmp_path: Path, closed: tuple[int, ...]) -> None:
    assert run(closed, "--help")[0] == 0
    assert run(closed, "manual")[0] in (0, 2)
    assert run(closed, "doctor")[0] in (0, 1)
    for command in ("bind", "unbind"):
        assert run(closed, command, "9999:99:1f.7")[0] == 1
    assert run(closed, "ls", str(tmp_path))[0] == 1
    assert run(closed, "nonsense")[0] == 2


def test_the_tour() -> None:
    assert run((0, 1, 2), "demo") == (0, "")


@pytest.mark.parametrize(
    ("closed", "what"),
    [
        ((0,), "standard input is closed"),
        ((1,), "standard output is closed"),
        ((0, 1), "standard input and output are closed"),
    ],
    ids=["0-closed", "1-closed", "01-closed"],
)
def test_standard_streams_that_are_closed_join_nothing(
    folder: Path, closed: tuple[int, ...], what: str
) -> None:
    port = run(closed, "mount", "-f", "--port", "a=stdio", str(folder))
    assert port == (1, f"vconfs: stdio cannot be joined to a port: {what}\n")
    device = run(closed, "mount", "-f", "--device", "stream:stdio", str(folder))
    assert device == (1, f"vconfs: stdio cannot be a stream: {what}\n")
    listening = run(closed, "host", "--listen", "stream:stdio")
    assert listening == (1, f"vconfs: stdio cannot be a stream: {what}\n")

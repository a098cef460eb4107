"""fleet.sh: a host asks all its guests, each over another device, by the files of their ports."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import block_until

from .examples import EXAMPLES, put_in_path
from .test_commands import folder, vconfs
from .test_host_files import mounting_host

__all__ = ["folder"]

SCRIPT = str(EXAMPLES / "fleet.sh")
PORT = "by-name/org.example.fleet"


def put_programs(folder: Path, name: str) -> Path:
    """Make programs that stand in for a guest's, for its own user; return their folder."""
    programs = folder / f"{name}-bin"
    put_in_path(programs, "who", f"echo 'user-of-{name} tty1'")
    put_in_path(programs, "loginctl", f'echo "$@" >>{folder}/{name}-locked')
    return programs


@contextmanager
def guest(device: str, folder: Path, name: str, shell: list[str]) -> Iterator[None]:
    """A guest that answers, with a user of its own."""
    at = folder / f"{name}-mnt"
    at.mkdir()
    programs = put_programs(folder, name)
    named = ("--name", name) if device.startswith("stream:") else ()
    vconfs("mount", "-o", "wait", "--device", device, *named, str(at))
    path = f"{programs}:{os.environ['PATH']}"
    words = [*shell, SCRIPT, "answer", str(at / PORT)]
    try:
        with subprocess.Popen(words, env={**os.environ, "PATH": path}) as answering:
            try:
                block_until(lambda: os.getxattr(at / PORT, "user.openers"))
                yield
            finally:
                answering.kill()
    finally:
        vconfs("umount", str(at))


def ask(question: str, guests: Path, shell: list[str]) -> list[str]:
    done = subprocess.run(
        [*shell, SCRIPT, question, str(guests)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    return sorted(done.stdout.splitlines())


def test_all_guests_are_asked_at_once(folder: Path, shell: list[str]) -> None:
    guests = folder / "guests"
    words = (
        *("--listen", f"vhost-user:{folder}/db1.sock"),
        *("--listen", f"stream:unix:{folder}/idle.sock"),
        *("--port", "org.example.fleet=mount"),
    )
    with mounting_host(folder, *words, listeners=3), ExitStack() as stack:
        for name, device in (
            ("web1", f"stream:unix:{folder}/any"),
            ("web2", f"stream:unix:{folder}/any"),
            ("db1", f"vhost-user:{folder}/db1.sock"),
        ):
            stack.enter_context(guest(device, folder, name, shell))
            block_until(lambda name=name: os.getxattr(guests / name / PORT, "user.guest") == b"1")  # type: ignore[misc]
        idle = "idle: it does not listen"
        assert ask("who", guests, shell) == [
            *("db1: user-of-db1", idle, "web1: user-of-web1", "web2: user-of-web2"),
        ]
        assert ask("lock", guests, shell) == [
            *("db1: locked", idle, "web1: locked", "web2: locked"),
        ]
        for name in ("web1", "web2", "db1"):
            assert (folder / f"{name}-locked").read_text() == "lock-sessions\n"
        systems = ask("system", guests, shell)
        assert systems[1] == idle
        assert all("Debian" in line for line in (systems[0], *systems[2:]))


@pytest.mark.parametrize("words", [[], ["who"], ["who", "/nowhere"]])
def test_mistakes_show_the_usage(words: list[str], shell: list[str]) -> None:
    done = subprocess.run(
        [*shell, SCRIPT, *words], capture_output=True, text=True, timeout=10, check=False
    )
    assert (done.returncode, done.stderr[:6]) == (2, "usage:")

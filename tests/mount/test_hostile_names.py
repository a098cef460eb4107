"""Ports, programs and paths with hostile names: no command prints what a terminal acts on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from vconfs.host.control_socket import serve_control
from vconfs.system.tasks import open_background

from .conftest import OpenMount, program

NAMES = [
    b"\x1b]0;title\x07",
    b"\x1b[2J\x1b[31mred",
    b"c1\xc2\x9b31m\xc2\x85",
    b"line\nvconfs: all is well\r\ttab",
    "\u202egnp.exe\u2066\u200e".encode(),
    "\u2028line\u2029".encode(),
    b"del\x7f\x08",
    b"\xff\xfe\x9b",
    b"[red]markup[/red]",
]
ALL = b" ".join(NAMES)
#: A program whose name (15 bytes at most) is hostile, and which has the ports open.
OPENER = """
import os, sys
open("/proc/self/comm", "wb").write(b"\\x1b]0;x\\x07\\n, 1 init")
files = [os.open(path, os.O_RDWR) for path in sys.argv[1:]]
print("open", flush=True)
sys.stdin.read()
"""


async def vconfs(*words: str | bytes, code: int = 0) -> str:
    """Run a command; each line that it prints can be shown as it is."""
    done = await trio.run_process(
        [sys.executable, "-m", "vconfs", *words],
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    output = done.stdout.decode()
    assert done.returncode == code, output
    assert [line for line in output.split("\n") if not line.isprintable()] == []
    return output


@pytest.mark.expect_log("have the same name")
async def test_each_command_shows_hostile_names_escaped(mounted: OpenMount, tmp_path: Path) -> None:
    specs = [f"port{port_id}=echo" for port_id in range(len(NAMES))]
    async with mounted(*specs) as it, open_background() as nursery:
        await nursery.start(serve_control, it.host_end, f"{tmp_path}/ctl")
        opener = [sys.executable, "-c", OPENER, str(it.file(0)), str(it.file(1))]
        async with program(*opener, stdin=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert await process.stdout.receive_some() == b"open\n"
            async with program(sys.executable, "-m", "vconfs", "watch", str(it.path)) as watching:
                await it.until(lambda: it.events_readers)
                for port_id, name in enumerate(NAMES):
                    it.host.rename(port_id, name)
                await assert_tables(str(it.path), f"{tmp_path}/ctl")
                it.host.rename(1, NAMES[0])
                await assert_errors(str(it.path), f"{tmp_path}/ctl")
                it.host.remove(0)
                assert watching.stdout is not None
                seen = b""
                while b"remove" not in seen:
                    seen += await watching.stdout.receive_some()
        assert all(line.isprintable() for line in seen.decode().split("\n"))
        assert len(seen.splitlines()) == len(NAMES) + 2


async def assert_tables(mount: str, control: str) -> None:
    assert len((await vconfs("ls", mount)).splitlines()) > len(NAMES)
    rows = [json.loads(row) for row in (await vconfs("ls", "--json", mount)).splitlines()]
    assert [row["name"] for row in rows] == [n.decode(errors="backslashreplace") for n in NAMES]
    assert rows[0]["openers"].split()[1:] == [r"\x1b]0;x\x07\x0a\x2c", "1", "init"]
    await vconfs("top", "--count", "1", mount)
    await vconfs("ctl", control, "list")
    listed = await vconfs("ctl", control, "list", "--json")
    rows = [json.loads(row) for row in listed.splitlines()]
    assert [row["name"] for row in rows] == [os.fsdecode(name) for name in NAMES]


async def assert_errors(mount: str, control: str) -> None:
    """Check the errors that have names in them: of a port, of two of this name, of a mount."""
    errors: tuple[tuple[str | bytes, ...], ...] = (
        ("ctl", control, "remove", NAMES[0]),
        ("ctl", control, "remove", ALL),
        ("cat", ALL),
        ("connect", os.fsencode(mount) + b"/" + ALL.replace(b"/", b"")),
        ("ls", os.fsencode(mount) + b"/" + ALL),
        ("umount", ALL),
    )
    for words in errors:
        line = await vconfs(*words, code=1)
        assert line.startswith("vconfs: ")
        assert line.count("\n") == 1


async def test_a_hostile_path_is_escaped_in_logs_and_errors(tmp_path: Path) -> None:
    listen = os.fsencode(tmp_path) + b"/no\x1b]0;x\x07\nfolder/s"
    line = await vconfs("host", "--listen", b"stream:unix:" + listen, code=1)
    assert line.count("\n") == 1
    assert r"no\x1b]0;x\x07\x0afolder" in line

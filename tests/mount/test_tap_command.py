"""`vconfs tap`: what it shows, and the files that it writes."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support import needs
from tests.support.pcapng_reader import packets
from tests.support.threads import in_thread
from vconfs.protocol import tap

from .conftest import Mounted, OpenMount, program
from .test_commands import VCONFS, folder, vconfs
from .test_tap import tap_of

__all__ = ["folder"]


@asynccontextmanager
async def tapping(it: Mounted, *words: str) -> AsyncIterator[trio.Process]:
    """Run `vconfs tap` beside the test, and wait until it taps."""
    before = len(it.manager.taps._tappers)
    async with program(*VCONFS, "tap", *words) as process:
        await it.until(lambda: len(it.manager.taps._tappers) > before)
        yield process


async def output_of(process: trio.Process) -> str:
    assert process.stdout is not None
    output = bytearray()
    async for data in process.stdout:
        output += data
    return output.decode()


async def test_the_command_shows_text(mounted: OpenMount) -> None:
    async with mounted("chat=echo", "log=null") as it:
        async with tapping(it, "--limit", "4", f"{it.path}/chat", f"{it.path}/vcon1") as shown:
            await it.run(
                r"exec 3<>$P; env printf 'one\ntwo\033[2J' >&3; head -c 11 <&3; echo >vcon1"
            )
            lines = (await output_of(shown)).splitlines()
    clock = "12:00:00.123456  "
    assert [re.sub("pid [0-9]+", "pid N", line[len(clock) :]) for line in lines] == [
        "chat  present, connected",
        "log   present, connected",
        "chat  open by bash (pid N)",
        r"chat  out  one\n",
        r"           two\x1b[2J",
        r"chat  in   one\n",
        r"           two\x1b[2J",
        "log   open by bash (pid N)",
    ]


async def test_hostile_names_are_shown_escaped(mounted: OpenMount) -> None:
    async with mounted("a=null") as it:
        it.manager.rename(it.port(), b"\x1b]0;x\x07\n")
        async with tapping(it, "--limit", "1", str(it.file())) as shown:
            await it.run("exec -a $'\\e[2J' bash -c 'echo >$P'")
            lines = (await output_of(shown)).splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() and r"\x1b]0;x\x07\x0a" in line for line in lines)


async def test_the_command_shows_hex_and_filters(mounted: OpenMount) -> None:
    async with mounted("chat=echo") as it:
        words = ("--hex", "--filter", "out", "--filter", "/wor+ld/", "--limit", "1", str(it.path))
        async with tapping(it, *words) as shown:
            await it.run("exec 3<>$P; echo hello >&3; head -n 1 <&3; printf 'ABCDEFGHIJworld' >&3")
            head, row = (await output_of(shown)).splitlines()
    assert head.endswith("chat  out  15 bytes")
    assert row.split(maxsplit=1)[1] == (
        "41 42 43 44 45 46 47 48 49 4a 77 6f 72 6c 64    ABCDEFGHIJworld"
    )


async def test_the_command_prints_the_lines_of_the_file_as_json(mounted: OpenMount) -> None:
    async with mounted("chat=null") as it, tap_of(it, 0) as tapped:
        async with tapping(it, "--json", "--limit", "3", str(it.file())) as shown:
            await it.run("echo hi >$P")
            lines = (await output_of(shown)).encode().splitlines()
        await tapped.until("close")
    records = [tap.parse(line) for line in lines]
    assert records[1:] == tapped.seen[1:]


#: What is compared by both readers: port, direction, data.
SENT = [("chat", "out", "hello"), ("chat", "in", "hello"), ("log", "out", "noted")]


async def captured(it: Mounted, folder: Path) -> Path:
    """Capture a short conversation to a file in a folder."""
    path = folder / "capture.pcapng"
    async with tapping(it, "--limit", "7", "--write", str(path), str(it.path)) as shown:
        await it.run(
            "exec 3<>vcon0; printf hello >&3; head -c 5 <&3; exec 3<&-; printf noted >vcon1"
        )
        assert await output_of(shown) == ""
    return path


async def test_the_capture_has_ports_directions_and_events(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted("chat=echo", "log=null") as it:
        path = await captured(it, tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read = packets(path.read_bytes())
    assert [(it.port, it.direction, it.data.decode()) for it in read if it.direction] == SENT
    words = [(it.port, it.comment.partition(" by")[0]) for it in read if it.comment]
    assert sorted(words) == [
        (port, word) for port in ("chat", "log") for word in ("close", "open", "present, connected")
    ]


@pytest.mark.long
async def test_tshark_reads_the_same(mounted: OpenMount, tmp_path: Path) -> None:
    await in_thread(lambda: needs.big_program("tshark"))
    names = ("frame.interface_name", "frame.packet_flags_direction", "data.data", "frame.comment")
    fields = [word for name in names for word in ("-e", name)]
    async with mounted("chat=echo", "log=null") as it:
        path = await captured(it, tmp_path)
    done = await in_thread(
        lambda: subprocess.run(
            ["tshark", "-r", str(path), "-T", "fields", *fields],
            capture_output=True,
            text=True,
            check=True,
            timeout=15,
        )
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    directions = {1: "in", 2: "out"}
    found = [
        (port, directions[int(flags, 0)], bytes.fromhex(data).decode())
        for port, flags, data, _ in rows
        if data
    ]
    assert found == SENT
    expected = [(it.port, it.comment) for it in packets(path.read_bytes()) if it.comment]
    assert [(port, comment) for port, _, _, comment in rows if comment] == expected


async def test_a_capture_goes_through_a_pipe_packet_by_packet(mounted: OpenMount) -> None:
    async with mounted("chat=null") as it, tapping(it, "--write", "-", str(it.file())) as shown:
        assert shown.stdout is not None
        await it.run("printf hello >$P")
        seen = b""
        while b"close by" not in seen:
            seen += await shown.stdout.receive_some()
        assert [packet.data for packet in packets(seen) if packet.data] == [b"hello"]


async def test_the_command_ends_with_the_mount(mounted: OpenMount) -> None:
    async with AsyncExitStack() as stack:
        async with mounted("chat=null") as it:
            shown = await stack.enter_async_context(tapping(it, str(it.path)))
        with trio.fail_after(10):
            assert "present" in await output_of(shown)
            assert await shown.wait() == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nothing"], "there is no port nothing"),
        (["--filter", "explode", "MOUNT"], "'explode' is not /REGEX/, and not one of in, out"),
        (["--filter", "/(/", "MOUNT"], "missing )"),
        (["--write", "/nowhere/x", "MOUNT"], "/nowhere/x: No such file or directory"),
        (["--json", "--hex", "MOUNT"], "choose one of --json, --hex and --write"),
        ([""], "'' is not the name of a port"),
        ([], "Missing argument"),
    ],
)
async def test_mistakes_get_one_line(mounted: OpenMount, words: list[str], error: str) -> None:
    async with mounted("chat=null") as it:
        given = [str(it.path) if word == "MOUNT" else word for word in words]
        async with program(*VCONFS, "tap", *given) as process:
            output = await output_of(process)
            assert await process.wait() in (1, 2)
        assert output.startswith("vconfs: ")
        assert error in output
        assert output.count("\n") == 1


def test_a_read_only_mount_is_tapped_as_well(folder: Path) -> None:
    vconfs("mount", "-o", "ro", "--port", "a=exec:echo hello", "--port", "b=null", str(folder))
    words = [*VCONFS, "tap", "--filter", "present,in", "--limit", "1", str(folder / "vcon0")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as shown:
        try:
            assert shown.stdout is not None
            assert "a  present" in shown.stdout.readline()
            assert (folder / "vcon0").read_bytes() == b"hello\n"
            assert shown.stdout.read().endswith("a  in   hello\\n\n")
            assert shown.wait(10) == 0
        finally:
            shown.kill()


def test_ports_of_two_mounts_are_not_tapped_at_once(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    vconfs("mount", "--port", "a=null", str(folder))
    vconfs("mount", "--port", "b=null", str(other))
    try:
        assert vconfs("tap", "a", str(other), code=1).startswith("these ports are in 2 mounts")
    finally:
        vconfs("umount", str(other))

"""vconfs watch, cat, connect and top, as programs beside a mount."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from vconfs.host.spec import parse_port

from .conftest import Mounted, OpenMount, program

VCONFS = (sys.executable, "-m", "vconfs")


def vconfs(
    *words: object, stdin: int = subprocess.DEVNULL
) -> AbstractAsyncContextManager[trio.Process]:
    return program(*VCONFS, *map(str, words), stdin=stdin)


async def seen(process: trio.Process, *words: bytes) -> bytes:
    """Read its output until it has all those words."""
    assert process.stdout is not None
    output = b""
    while not all(word in output for word in words):
        data = await process.stdout.receive_some()
        assert data, output.decode()
        output += data
    return output


async def rest(process: trio.Process) -> str:
    assert process.stdout is not None
    return b"".join([data async for data in process.stdout]).decode()


@asynccontextmanager
async def watching(it: Mounted, *options: str) -> AsyncIterator[trio.Process]:
    """`vconfs watch`, once it listens."""
    async with vconfs("watch", *options, it.path) as watch:
        await it.until(lambda: it.events_readers)
        yield watch


async def test_watch_prints_a_line_per_event(mounted: OpenMount) -> None:
    async with mounted("a=null") as it, watching(it) as watch:
        await it.host.add(parse_port("b=echo"))
        guest = b"web1      " if it.side == "host" else b""
        added = b"add               %svcon1\n" % guest, b"name              %svcon1   b\n" % guest
        await seen(watch, *added)
        it.manager.remove(1)
        await seen(watch, b"remove            %svcon1   b\n" % guest)


async def test_watch_json_is_an_object_per_line(mounted: OpenMount) -> None:
    async with mounted("a=null") as it, watching(it, "--json") as watch:
        it.port().set_throttled(True)
        event = json.loads(await seen(watch, b"\n"))
        assert (event["event"], event["name"], event["throttled"]) == ("throttle", "a", True)


async def test_watch_until_waits_for_the_state(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted(f"chat=unix:{tmp_path}/sock") as it:
        async with watching(it, "--until", "connect=chat") as watch:
            async with await trio.open_unix_socket(f"{tmp_path}/sock"):
                assert await watch.wait() == 0
        async with vconfs("watch", "--until", "disconnect=vcon0", it.path) as watch:
            assert await watch.wait() == 0  # this is the case already


async def test_watch_gives_up_after_the_timeout(mounted: OpenMount) -> None:
    async with mounted("a=null") as it:
        words = "--timeout", "0.05", "--until", "add=later"
        async with vconfs("watch", *words, it.path) as watch:
            assert await watch.wait() == 1
            assert await rest(watch) == "vconfs: timed out after 0.05 s waiting for add=later\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [((), 0, ""), (("--until", "add=x"), 1, "was unmounted before add=x\n")],
)
async def test_watch_ends_with_the_mount(
    mounted: OpenMount, words: tuple[str, ...], code: int, message: str
) -> None:
    async with trio.open_nursery() as nursery:  # it outlives the mount
        async with mounted("a=null") as it:
            watch = await nursery.start(watching_in_background, it, words)
        assert await watch.wait() == code
        assert (await rest(watch)).endswith(message)
        nursery.cancel_scope.cancel()


async def watching_in_background(
    it: Mounted, words: tuple[str, ...], task_status: trio.TaskStatus[trio.Process]
) -> None:
    async with watching(it, *words) as watch:
        task_status.started(watch)
        await trio.sleep_forever()


@pytest.mark.parametrize("words", [("watch", "{path}"), ("cat", "{port}"), ("connect", "{port}")])
async def test_ctrl_c_ends_cat_at_once_and_loses_no_data(
    mounted: OpenMount, tmp_path: Path, words: tuple[str, str]
) -> None:
    command, argument = words
    async with mounted(f"a=unix:{tmp_path}/sock", cache=True) as it:
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await it.until(lambda: it.port().host_connected)
            place = argument.format(path=it.path, port=it.file())
            async with vconfs(command, place, stdin=subprocess.PIPE) as process:
                await it.until(lambda: it.events_readers or it.port()._inbox.turn.locked())
                process.send_signal(signal.SIGINT)
                assert await process.wait() == -signal.SIGINT  # a shell ends its loop, too
                assert await rest(process) == "\n"  # behind the ^C
            await it.until(lambda: not it.port().openers)
            await host.send_all(b"later")
            await it.until(lambda: it.port().queued == 5)


async def test_watch_refuses_what_it_cannot_wait_for(mounted: OpenMount, tmp_path: Path) -> None:
    async with vconfs("watch", "--until", "rain=tomorrow", tmp_path) as watch:
        assert await watch.wait() == 2
    async with vconfs("watch", tmp_path) as watch:
        assert await watch.wait() == 1
        assert "is not a vconfs mount" in await rest(watch)


async def test_cat_waits_for_a_host_and_ends_with_it(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted(f"log=unix:{tmp_path}/sock") as it, vconfs("cat", it.path / "log") as cat:
        await it.until(lambda: it.port().openers)
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await host.send_all(b"hello\n")
            await seen(cat, b"hello\n")
        assert await cat.wait() == 0


async def test_cat_ends_when_its_output_is_full(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted(f"log=unix:{tmp_path}/sock") as it:
        cat = f"exec {shlex.join(VCONFS)} cat {it.file()} >/dev/full"
        async with program("sh", "-c", cat) as process:
            await it.until(lambda: it.port().openers)
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                await host.send_all(b"hello\n")
                message = await rest(process)
                assert message == "vconfs: standard output: No space left on device\n"
                assert await process.wait() == 1


async def test_cat_write_waits_while_the_host_throttles(mounted: OpenMount) -> None:
    async with mounted("sink=null") as it:
        it.port().set_throttled(True)
        async with vconfs("cat", "-w", it.path / "sink", stdin=subprocess.PIPE) as cat:
            assert cat.stdin is not None
            await cat.stdin.send_all(b"words")
            await it.until(lambda: it.port().openers)
            it.port().set_throttled(False)
            await it.until(lambda: it.port().counters.bytes_out == 5)
            await cat.stdin.aclose()
            assert await cat.wait() == 0


async def test_connect_goes_both_ways_and_prints_the_answer_after_its_input_ended(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"chat=unix:{tmp_path}/sock") as it:
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await it.until(lambda: it.port().host_connected)
            async with vconfs("connect", it.path / "chat", stdin=subprocess.PIPE) as connect:
                assert connect.stdin is not None
                await connect.stdin.send_all(b"question")
                assert await host.receive_some(100) == b"question"
                await connect.stdin.aclose()
                await host.send_all(b"answer")
                await seen(connect, b"answer")
                await host.aclose()
                assert await connect.wait() == 0


async def test_connect_notices_a_host_that_says_nothing(mounted: OpenMount, tmp_path: Path) -> None:
    async with mounted(f"chat=unix:{tmp_path}/sock") as it:
        async with vconfs("connect", it.path / "chat", stdin=subprocess.PIPE) as connect:
            await it.until(lambda: it.port().openers)
            assert connect.stdin is not None
            await connect.stdin.send_all(b"question")
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                assert await host.receive_some() == b"question"
            assert await connect.wait() == 0


async def test_connect_answers_a_host_that_has_sent_everything(
    mounted: OpenMount, tmp_path: Path
) -> None:
    """A host's half-close is not a hang-up: it still reads."""
    async with mounted(f"chat=unix:{tmp_path}/sock") as it:
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await it.until(lambda: it.port().host_connected)
            async with vconfs("connect", it.path / "chat", stdin=subprocess.PIPE) as connect:
                await host.send_all(b"question")
                await host.send_eof()
                await seen(connect, b"question")
                assert connect.stdin is not None
                await connect.stdin.send_all(b"answer")
                assert await host.receive_some(100) == b"answer"
                await host.aclose()
                await connect.stdin.send_all(b"x")  # only now the host end learns of it
                assert await connect.wait() == 0


async def test_connect_says_that_its_port_is_gone(mounted: OpenMount) -> None:
    async with mounted("chat=null") as it:
        async with vconfs("connect", it.file(), stdin=subprocess.PIPE) as connect:
            await it.until(lambda: it.port()._inbox.turn.locked())
            it.manager.remove(0)
            assert await connect.wait() == 1
            assert await rest(connect) == f"vconfs: {it.file()}: No such device\n"


async def test_a_port_is_found_by_its_name_in_any_mount(mounted: OpenMount) -> None:
    name = f"org.vconfs.test.{os.getpid()}"
    async with mounted(f"{name}=exec:echo from here") as it:
        async with vconfs("cat", name) as cat:
            await seen(cat, b"from here\n")
        async with vconfs("cat", it.path / "nothing") as cat:
            assert await cat.wait() == 1
            assert "there is no port" in await rest(cat)


@pytest.mark.busy("the daemon is stopped in any of its steps")
async def test_a_mount_that_does_not_answer_holds_up_no_search_by_name(
    mounted: OpenMount, tmp_path: Path
) -> None:
    name = f"org.vconfs.test.{os.getpid()}"
    stuck = tmp_path / "stuck"
    stuck.mkdir()
    async with mounted(f"{name}=exec:echo from here"):
        await trio.run_process([*VCONFS, "mount", str(stuck)])
        daemon = int(os.getxattr(stuck, "user.pid"))
        os.kill(daemon, signal.SIGSTOP)
        try:
            async with vconfs("cat", name) as cat:
                await seen(cat, b"from here\n")
                assert await cat.wait() == 0
        finally:
            os.kill(daemon, signal.SIGCONT)
            await trio.run_process([*VCONFS, "umount", str(stuck)])


async def test_the_error_of_a_busy_port_names_its_opener(mounted: OpenMount) -> None:
    async with mounted("one=echo", exclusive=True) as it:
        async with program("bash", "-c", f"exec 3<>{it.file()}; sleep 1000"):
            await it.until(lambda: it.port().openers)
            async with vconfs("connect", it.file()) as connect:
                assert await connect.wait() == 1
                assert "open by" in await rest(connect)


async def test_top_prints_rates_where_there_is_no_terminal(mounted: OpenMount) -> None:
    async with mounted("a=null", "b=echo") as it:
        it.port(1).set_throttled(True)
        async with vconfs("top", "--count", "2", "--interval", "0.05", it.path) as top:
            output = await rest(top)
            assert await top.wait() == 0
        lines = output.splitlines()
        assert len(lines) == 6
        heads, row = lines[0].split(), lines[5].split()
        if it.side == "host":
            assert (heads.pop(0), row.pop(0)) == ("GUEST", "web1")
        other = {"guest": "HOST", "host": "PEER"}[it.side]
        assert heads == ["PORT", "NAME", other, "IN/S", "OUT/S", "QUEUED", "FILL", "STATE"]
        assert row == ["vcon1", "b", "connected", "0", "0", "0", "0%", "throttled"]

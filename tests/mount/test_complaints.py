"""What people report about ports today, complaint by complaint, each named as it is told.

The table that these are the rows of is in docs/coming-from-virtio-ports.md.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.support import needs
from tests.support.threads import in_thread
from vconfs.host.spec import parse_port

from .conftest import OpenMount, program

VCONFS = (sys.executable, "-m", "vconfs")
NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups"


async def test_agents_spin_on_pollhup_while_no_host_is_attached(
    mounted: OpenMount, tmp_path: Path
) -> None:
    """An agent waits in read with -o wait, or in an edge-triggered poll: no loop, no helper."""
    async with mounted(f"agent=unix:{tmp_path}/sock", wait=True) as it:
        async with program("cat", str(it.file())) as agent:
            assert agent.stdout is not None
            await it.until(lambda: it.port().openers)
            port = await in_thread(lambda: os.open(it.file(), os.O_RDWR | os.O_NONBLOCK))
            poll = select.epoll()
            changes = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET
            await in_thread(lambda: poll.register(port, changes))
            alone = [(port, select.EPOLLOUT | select.EPOLLHUP)]
            assert await in_thread(lambda: poll.poll(10)) == alone
            assert await in_thread(lambda: poll.poll(0.05)) == []  # it does not spin
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                await host.send_all(b"question")
                assert await agent.stdout.receive_some() == b"question"
                assert await in_thread(lambda: poll.poll(10)) == [(port, select.EPOLLOUT)]
            poll.close()
            await in_thread(lambda: os.close(port))


async def test_the_second_open_is_ebusy_without_naming_the_first(mounted: OpenMount) -> None:
    async with mounted("shared=echo") as it:
        assert (
            await it.run("exec 3<>$P; exec 4<>$P; echo both >&4; read -r x <&3; echo $x")
            == "both\n"
        )
    async with mounted("busy=echo", exclusive=True) as it:
        holding = f"exec 3<>{it.file()}; read x"
        async with program("sh", "-c", holding, stdin=subprocess.PIPE) as first:
            await it.until(lambda: it.port().openers)
            assert "busy" in await it.run("cat $P", code=1)
            openers = "getfattr --absolute-names --only-values -n user.openers $P"
            assert await it.run(openers) == f"{first.pid} sh"


async def test_the_agent_starts_before_the_name_exists(mounted: OpenMount) -> None:
    async with mounted("other=echo") as it:
        wait = ("inotifywait", "-qm", "-e", "create", "--format", "%f", f"{it.path}/by-name")
        async with program(*wait) as agent:
            assert agent.stdout is not None
            async with program(*VCONFS, "watch", "--until", "add=late", str(it.path)) as watch:
                await it.until(lambda: it.events_readers)
                # inotifywait does not tell, with -q, when it watches: names come until it does.
                for port_id in range(1, 100):
                    await it.host.add(parse_port(f"name{port_id}=echo"))
                    with trio.move_on_after(0.1):
                        assert await agent.stdout.receive_some()
                        break
                await it.host.add(parse_port("late=echo"))
                while b"late\n" not in await agent.stdout.receive_some():
                    pass
                assert (
                    await it.run("exec 3<>by-name/late; echo hi >&3; read -r x <&3; echo $x")
                    == "hi\n"
                )
                assert await watch.wait() == 0


async def test_bytes_of_an_old_connection_reach_a_new_client(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"port=unix:{tmp_path}/sock") as it:
        port = await in_thread(lambda: os.open(it.file(), os.O_RDONLY))
        for who in (b"the first", b"the second"):
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                await host.send_all(who)
                await it.until(lambda: it.port().host_connected)
            await it.until(lambda: not it.port().host_connected)
        for expected in (b"the first", b"", b"the second", b""):
            assert await in_thread(lambda: os.read(port, 1000)) == expected
        await in_thread(lambda: os.close(port))


@pytest.mark.expect_log("could not be delivered")
async def test_writing_to_a_host_that_does_not_read_freezes_the_guest(
    mounted: OpenMount, tmp_path: Path
) -> None:
    much = "head -c 10000000 /dev/zero >$P"
    port = f"port=unix:{tmp_path}/sock"
    async with mounted(port, "other=echo", throttle="200ms") as it:
        async with await trio.open_unix_socket(f"{tmp_path}/sock"):
            await it.until(lambda: it.port().host_connected)
            assert "No space left" in await it.run(much, code=1)
            assert await it.run("exec 3<>vcon1; echo on >&3; read -r x <&3; echo $x") == "on\n"
    async with mounted(port, throttle="block") as it:
        async with await trio.open_unix_socket(f"{tmp_path}/sock"):
            await it.until(lambda: it.port().host_connected)
            await it.run(f"timeout -s INT 0.3 {much}", code=124)  # it waits: a signal ends it


async def test_output_is_dropped_without_a_word_when_the_host_is_slow(
    mounted: OpenMount, tmp_path: Path
) -> None:
    numbers = "".join(f"{number}\n" for number in range(100_000)).encode()
    async with mounted(f"port=unix:{tmp_path}/sock,host-limit=4096", throttle="block") as it:
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            await it.until(lambda: it.port().host_connected)
            async with program("sh", "-c", f"seq 0 99999 >{it.file()}") as writer:
                await it.until(lambda: it.port().host_throttled)  # the slow host
                received = b""
                while len(received) < len(numbers):
                    received += await host.receive_some(1000)
                assert await writer.wait() == 0
        assert received == numbers
        assert it.host.ports[0].counters.dropped == 0


async def test_unread_data_is_lost_on_close(mounted: OpenMount, tmp_path: Path) -> None:
    for cache, left in ((False, ""), (True, "second\n")):
        async with mounted(f"port=unix:{tmp_path}/sock", cache=cache) as it:
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                await host.send_all(b"first\nsecond\n")
                await it.until(lambda: it.port().queued == 13)
            await it.until(lambda: not it.port().host_connected)
            assert await it.run("read -r x <$P; echo $x; cat $P") == f"first\n{left}"


@pytest.mark.guest_side("only a guest's writes keep their boundaries")
async def test_message_boundaries_are_lost(mounted: OpenMount, tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    async with mounted(f"port=seqpacket:{path}") as it:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as host:
            await host.connect(path)
            await it.until(lambda: it.port().host_connected)
            await it.run("exec 3>$P; printf one >&3; printf two >&3; head -c 200000 /dev/zero >&3")
            assert await host.recv(1 << 20) == b"one"
            assert await host.recv(1 << 20) == b"two"
            large = b""
            while len(large) < 200_000:  # head writes it in several pieces
                large += (packet := await host.recv(1 << 20))
                assert packet


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may look into."""
    with tempfile.TemporaryDirectory(prefix="vconfs-test-") as name:
        Path(name).chmod(0o755)
        path = Path(name, "mnt")
        path.mkdir()
        yield path
        subprocess.run(["umount", "-lq", path], check=False)  # what a test that failed has left


@asynccontextmanager
async def mount_for_all(path: Path, *words: str) -> AsyncIterator[None]:
    async with program(*VCONFS, "mount", "-f", *words, str(path)) as daemon:
        with trio.fail_after(20):
            while not await in_thread((path / "vcon0").exists):
                assert daemon.returncode is None
                await trio.sleep(0.01)
            yield
            await trio.run_process([*VCONFS, "umount", str(path)])
            assert await daemon.wait() == 0


async def run(command: str, *, code: int = 0) -> str:
    done = await trio.run_process(
        ["sh", "-c", f"exec 2>&1; {command}"], capture_stdout=True, check=False
    )
    assert done.returncode == code, done.stdout
    return done.stdout.decode()


@pytest.fixture
def other_users() -> None:
    needs.other_users()


@pytest.mark.usefixtures("other_users")
async def test_ports_are_for_root_only(open_folder: Path) -> None:
    port = f"{open_folder}/vcon0"
    use = f"{NOBODY} dash -c 'exec 3<>{port}; echo mine >&3; read -r x <&3; echo $x'"
    async with mount_for_all(open_folder, "--port", "a=echo", "-o", "allow_other"):
        assert "Permission denied" in await run(use, code=2)
    for options in ("uid=65534", "gid=65534,mode=0660"):
        async with mount_for_all(open_folder, "--port", "a=echo", "-o", f"allow_other,{options}"):
            assert await run(use) == "mine\n"


@pytest.mark.usefixtures("other_users")
async def test_a_ports_state_is_visible_only_to_root_in_debugfs(open_folder: Path) -> None:
    """Who may read the port may see its state; who may not sees that there is one."""
    ls = f"{NOBODY} {' '.join(VCONFS)} ls {open_folder}"
    attribute = f"{NOBODY} getfattr --absolute-names --only-values -n user.host {open_folder}/vcon0"
    for options, state, host in (
        ("allow_other,gid=65534,mode=0640", "org.agent  connected", "1"),
        ("allow_other", "no permission", ""),
    ):
        async with mount_for_all(open_folder, "--port", "org.agent=null", "-o", options):
            assert state in await run(ls)
            assert (await run(f"{attribute} 2>/dev/null", code=not host)) == host


async def test_wake_ups_are_lost_with_two_users_of_a_port(mounted: OpenMount) -> None:
    """Two read what a third writes, message by message: none is left asleep over data."""
    count, size = 2000, 8
    taken: list[bytes] = []
    async with mounted("port=echo") as it:
        port = await in_thread(lambda: os.open(it.file(), os.O_RDWR))

        async def read_to_the_end() -> None:
            while (message := await in_thread(lambda: os.read(port, size))) != b"the end.":
                taken.append(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_to_the_end)
            nursery.start_soon(read_to_the_end)
            for number in range(count):
                message = b"%08d" % number
                await in_thread(partial(os.write, port, message))
            await in_thread(lambda: os.write(port, 2 * b"the end."))
        await in_thread(lambda: os.close(port))
    assert sorted(taken) == [b"%08d" % number for number in range(count)]


async def test_an_unplugged_or_restarted_host_needs_a_reboot(open_folder: Path) -> None:
    url = f"stream:unix:{open_folder.parent}/device"
    host_words = (*VCONFS, "host", "--listen", url, "--port", "port=echo")
    port = f"{open_folder}/vcon0"
    talk = f"exec 3<>{port}; echo hi >&3; read -r x <&3; echo $x"
    watch = f"timeout 10 {' '.join(VCONFS)} watch --until"

    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(program(*host_words))
        assert host.stdout is not None
        assert b"listening" in await host.stdout.receive_some()
        async with mount_for_all(open_folder, "--device", url):
            await run(f"{watch} connect=port {open_folder}")
            assert await run(f"bash -c '{talk}'") == "hi\n"
            host.kill()
            await run(f"{watch} disconnect=port {open_folder}")
            await stack.enter_async_context(program(*host_words))
            await run(f"{watch} connect=port {open_folder} >/dev/null")
            assert await run(f"bash -c '{talk}'") == "hi\n"

"""Consoles on ptys: what a terminal on a port does."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support import needs
from tests.support.devices import OpenDevice
from tests.support.threads import in_thread
from vconfs.device.embedded import open_embedded
from vconfs.guest.driver import drive
from vconfs.guest.ports import PortManager
from vconfs.host.host import Host
from vconfs.host.spec import parse_port
from vconfs.protocol.dialect import DIALECTS

from .conftest import Mounted, OpenMount, program

pytestmark = pytest.mark.guest_side("on the host's side a terminal is the chardev pty")

#: Columns and rows of the console in the device's configuration.
SIZE = (100, 30)


@pytest.fixture(params=sorted(DIALECTS))
def device(request: pytest.FixtureRequest) -> OpenDevice:
    """Consoles are the same whatever both ends speak."""

    def open_sized(
        host: Host, manager: PortManager, folder: Path
    ) -> AbstractAsyncContextManager[object]:
        if host.ports[0].console:
            host.resize(0, *SIZE)
        return drive(manager, open_embedded(host, request.param))

    return open_sized


async def open_slave(it: Mounted, port_id: int = 0) -> int:
    await it.until(lambda: it.port(port_id).pty)
    return os.open(it.port(port_id).pty, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)


async def read_some(fd: int, size: int = 1 << 16) -> bytes:
    await trio.lowlevel.wait_readable(fd)
    return os.read(fd, size)


async def read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await read_some(fd, size - len(data))
    return data


async def test_a_console_is_a_terminal_that_the_mount_shows_by_number(mounted: OpenMount) -> None:
    async with mounted("=echo,console", "plain=echo") as it:
        await it.until(lambda: it.port().hvc is not None)
        assert await in_thread((it.path / "hvc0").readlink) == Path(it.port().pty)
        assert (it.port(1).hvc, it.port(1).pty) == (None, "")
        shown = await it.run("test -c hvc0 && getfattr --only-values -n user.pty vcon0")
        assert shown == it.port().pty
        slave = await open_slave(it)
        os.write(slave, b"hello")
        assert await read_exactly(slave, 5) == b"hello"
        os.close(slave)


async def test_a_console_may_be_closed_and_opened_again(mounted: OpenMount) -> None:
    async with mounted("=echo,console") as it:
        for word in (b"one", b"two", b"three"):
            slave = await open_slave(it)
            os.write(slave, word)
            assert await read_exactly(slave, len(word)) == word
            os.close(slave)


async def test_what_is_written_before_anybody_reads_is_kept(mounted: OpenMount) -> None:
    async with mounted("=null,console") as it:
        await it.until(lambda: it.port().openers)
        it.port().feed(memoryview(b"x" * 200_000))
        slave = await open_slave(it)
        assert await read_exactly(slave, 200_000) == b"x" * 200_000
        os.close(slave)


async def test_unread_output_is_kept_up_to_the_limit_and_the_rest_with_its_writer(
    mounted: OpenMount, tmp_path: Path
) -> None:
    numbers = b"".join(b"%d\n" % number for number in range(300_000))
    async with mounted(f"=unix:{tmp_path}/sock,console", limit=1 << 16) as it:
        async with (
            await trio.open_unix_socket(f"{tmp_path}/sock") as host,
            trio.open_nursery() as n,
        ):
            n.start_soon(host.send_all, numbers)
            await it.until(lambda: not it.port().wants_data)
            slave = await open_slave(it)
            assert await read_exactly(slave, len(numbers)) == numbers
            os.close(slave)


async def test_an_unused_terminal_leaves_all_data_to_the_file(mounted: OpenMount) -> None:
    async with mounted("=echo,console") as it:
        for round in range(20):
            assert await it.run(f"echo {round} >$P; read -r x <$P; echo $x") == f"{round}\n"


async def test_a_full_console_stops_no_other(mounted: OpenMount) -> None:
    async with mounted("=zero,console", "other=echo", limit=1 << 16) as it:
        await it.until(lambda: not it.port().wants_data)
        slave = await open_slave(it)
        assert await it.run("exec 3<>vcon1; echo on >&3; read -r x <&3; echo $x") == "on\n"
        assert it.port().queued <= it.port().limit + it.port()._at.line.in_flight  # type: ignore[union-attr]
        os.close(slave)


async def test_numbers_are_given_in_order_and_the_lowest_free_one(mounted: OpenMount) -> None:
    async with mounted("a=echo,console", "b=echo", "c=echo,console") as it:
        await it.until(lambda: it.port(2).hvc is not None)
        assert [it.port(port_id).hvc for port_id in range(3)] == [0, None, 1]
        first = it.port(0)
        it.manager.remove(0)
        assert (first.hvc, first.pty) == (None, "")
        await it.host_end.add(parse_port("d=echo,console"))
        await it.until(lambda: it.port(3).hvc is not None)
        assert it.port(3).hvc == 0
        assert await it.run("echo hvc*") == "hvc0 hvc1\n"


async def test_a_console_that_comes_and_goes_is_announced(mounted: OpenMount) -> None:
    async with mounted("a=echo") as it:
        watch = "inotifywait", "-m", "-e", "create,delete", "--format", "%e %f", str(it.path)
        async with program(*watch) as events:
            assert events.stdout is not None
            seen = b""
            while b"established" not in seen:
                seen += await events.stdout.receive_some()
            await it.host_end.add(parse_port("b=echo,console"))
            await it.until(lambda: 1 in it.manager.ports)
            while b"CREATE hvc0" not in seen:
                seen += await events.stdout.receive_some()
            it.manager.remove(1)
            while b"DELETE hvc0" not in seen:
                seen += await events.stdout.receive_some()


async def until_sized(it: Mounted, port_id: int, size: tuple[int, int]) -> None:
    await it.until(lambda: it.port(port_id).pty and it.port(port_id).size == size)
    slave = await open_slave(it, port_id)
    assert os.get_terminal_size(slave) == size
    os.close(slave)


async def test_the_size_of_the_console_is_that_of_the_window(mounted: OpenMount) -> None:
    async with mounted("=echo,console") as it:
        await until_sized(it, 0, SIZE)
        it.host_end.resize(0, 80, 25)
        await until_sized(it, 0, (80, 25))


async def test_the_console_follows_the_window_of_the_pty_at_the_host(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"=pty:{tmp_path}/viewer,console", f"b=pty:{tmp_path}/b,console") as it:
        for port_id, name in enumerate(("viewer", "b")):
            viewer = os.open(tmp_path / name, os.O_RDWR | os.O_NOCTTY)
            for rows, cols in ((43, 132 + port_id), (24, 80)):
                termios.tcsetwinsize(viewer, (rows, cols))
                await until_sized(it, port_id, (cols, rows))
            it.host_end.resize(port_id, 90, 20)  # what came last counts
            await until_sized(it, port_id, (90, 20))
            os.close(viewer)


async def test_a_program_on_hvc_sees_the_window_of_the_viewer_change(
    mounted: OpenMount, tmp_path: Path
) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do read -t 0.05 x; done"
    async with mounted(f"=pty:{tmp_path}/viewer,console") as it:
        await it.until(lambda: it.port().pty)
        slave = it.port().pty
        viewer = os.open(tmp_path / "viewer", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        command = f'exec setsid -c bash -c "{script}" <{slave} >{slave} 2>&1'
        async with program("bash", "-c", command):
            seen = b""
            while b"ready" not in seen:
                seen += await read_some(viewer)
            termios.tcsetwinsize(viewer, (43, 132))
            while b"43 132" not in seen:
                seen += await read_some(viewer)
        os.close(viewer)


async def test_a_second_viewer_of_a_console_is_told_that_it_is_in_use(
    mounted: OpenMount, tmp_path: Path
) -> None:
    path = f"{tmp_path}/sock"
    async with mounted(f"=unix:{path},console") as it:
        slave = await open_slave(it)
        async with await trio.open_unix_socket(path) as first:
            await it.until(lambda: it.port().host_connected)
            async with await trio.open_unix_socket(path) as second:
                said = b"".join([piece async for piece in second])
            assert said == b"vconfs: the console of port 0 is in use\r\n"
            await first.send_all(b"still here")
            assert await read_exactly(slave, 10) == b"still here"
        await it.until(lambda: not it.port().host_connected)
        async with await trio.open_unix_socket(path) as third:
            await third.send_all(b"my turn")
            assert await read_exactly(slave, 7) == b"my turn"
        os.close(slave)


async def test_a_viewer_that_reconnects_is_never_told_that_the_console_is_in_use(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"=unix:{tmp_path}/sock,console") as it:
        slave = await open_slave(it)
        for round in range(20):
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as viewer:
                await viewer.send_all(b"%02d" % round)
                assert await read_exactly(slave, 2) == b"%02d" % round
        os.close(slave)


async def test_each_console_has_its_own_size_and_data(mounted: OpenMount) -> None:
    async with mounted("a=echo,console", "b=echo,console", "c=echo,console") as it:
        for port_id in range(3):
            it.host_end.resize(port_id, 80 + port_id, 25)
            await until_sized(it, port_id, (80 + port_id, 25))
        slaves = [await open_slave(it, port_id) for port_id in range(3)]
        for port_id, slave in enumerate(slaves):
            os.write(slave, b"%d" % port_id * 1000)
        for port_id, slave in enumerate(slaves):
            assert await read_exactly(slave, 1000) == b"%d" % port_id * 1000
            os.close(slave)


async def test_a_program_on_the_console_gets_sigwinch(mounted: OpenMount) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do read -t 0.05 x; done"
    async with mounted("=null,console") as it:
        await it.until(lambda: it.port().pty)
        slave = it.port().pty
        heard = bytearray()
        it.host_end.ports[0].sink = lambda piece: heard.extend(piece) or len(piece)  # type: ignore[func-returns-value]
        command = f'exec setsid -c bash -c "{script}" <{slave} >{slave} 2>&1'
        async with program("bash", "-c", command):
            await it.until(lambda: b"ready" in heard)
            it.host_end.resize(0, 132, 43)
            await it.until(lambda: b"43 132" in heard)


@pytest.mark.parametrize("device", ["v8"], indirect=True)
async def test_a_throttled_host_makes_its_writers_wait(mounted: OpenMount) -> None:
    async with mounted("=null,console") as it:
        slave = await open_slave(it)
        heard = bytearray()
        it.host_end.ports[0].sink = lambda piece: heard.extend(piece) or len(piece)  # type: ignore[func-returns-value]
        it.port().set_throttled(True)
        os.write(slave, b"patience")
        os.close(slave)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not heard
        it.port().set_throttled(False)
        await it.until(lambda: heard == b"patience")


async def test_a_host_that_hangs_up_and_comes_back_is_the_same_terminal(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"=unix:{tmp_path}/sock,console") as it:
        slave = await open_slave(it)
        for word in (b"first", b"second"):
            async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                await host.send_all(word)
                assert await read_exactly(slave, len(word)) == word
            await it.until(lambda: not it.port().host_connected)
        os.close(slave)


async def test_the_terminal_hangs_up_when_the_port_goes(mounted: OpenMount) -> None:
    async with mounted("=echo,console", "other=echo") as it:
        slave = await open_slave(it)
        it.manager.remove(0)
        await trio.lowlevel.wait_readable(slave)
        assert os.read(slave, 1) == b""
        with pytest.raises(OSError) as gone:
            os.write(slave, b"x")
        assert gone.value.errno == errno.EIO
        os.close(slave)
        assert await it.run("echo hvc*") == "hvc*\n"


async def test_an_exclusive_console_belongs_to_its_terminal(mounted: OpenMount) -> None:
    async with mounted("=echo,console", exclusive=True) as it:
        await it.until(lambda: it.port().openers)
        assert "busy" in await it.run("cat $P", code=1)


@pytest.mark.expect_log("have the same name")
async def test_a_port_that_is_not_a_console_gets_a_pty_by_name(mounted: OpenMount) -> None:
    async with mounted("org.modem.0=echo", "other=echo", ttys=["org.*"]) as it:
        slave = await open_slave(it)
        assert (it.port().hvc, it.port(1).pty) == (None, "")
        os.write(slave, b"AT")
        assert await read_exactly(slave, 2) == b"AT"
        os.close(slave)
        it.manager.rename(it.port(), b"plain")
        assert it.port().pty == ""
        it.manager.rename(it.port(1), b"org.new")
        assert it.port(1).pty


# --- what no file of a FUSE mount can do --------------------------------------------------

#: A console, and another port with `-o tty=NAME`.
PTYS = {"a console": "=echo,console", "a port with tty=": "modem=echo"}


@asynccontextmanager
async def pty_beside(mounted: OpenMount, port: str) -> AsyncIterator[tuple[Mounted, str]]:
    async with mounted(port, ttys=["modem"]) as it:
        await it.until(lambda: it.port().pty)
        yield it, it.port().pty


@pytest.mark.parametrize("port", PTYS.values(), ids=PTYS)
async def test_stty_works_on_the_pty(mounted: OpenMount, port: str) -> None:
    async with pty_beside(mounted, port) as (it, pty):
        assert "-echo " in await it.run(f"stty -F {pty} -a")  # it is raw at first
        assert await it.run(f"stty -F {pty} cols 77 rows 11; stty -F {pty} size") == "11 77\n"


@pytest.mark.parametrize("port", PTYS.values(), ids=PTYS)
async def test_fionread_tells_how_much_waits_on_the_pty(mounted: OpenMount, port: str) -> None:
    async with pty_beside(mounted, port) as (it, _):
        slave = await open_slave(it)
        os.write(slave, b"12345")
        await trio.lowlevel.wait_readable(slave)
        assert fcntl.ioctl(slave, termios.FIONREAD, bytes(4)) == (5).to_bytes(4, sys.byteorder)
        os.close(slave)


@pytest.mark.parametrize("port", PTYS.values(), ids=PTYS)
async def test_the_pty_sends_sigio_to_its_owner(mounted: OpenMount, port: str) -> None:
    script = """if True:
        import fcntl, os, signal, sys
        pty = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
        fcntl.fcntl(pty, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pty, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.write(pty, b"comes back")
        signal.sigwait({signal.SIGIO})
        print(os.read(pty, 100).decode())
    """
    async with pty_beside(mounted, port) as (_, pty):
        async with program(sys.executable, "-c", script, pty) as asking:
            assert asking.stdout is not None
            assert await asking.wait() == 0
            assert await asking.stdout.receive_some() == b"comes back\n"


@pytest.mark.parametrize("port", PTYS.values(), ids=PTYS)
async def test_tail_follows_the_pty(mounted: OpenMount, port: str) -> None:
    async with pty_beside(mounted, port) as (it, pty):
        # Else tail first waits for an end, which a terminal does not have.
        await it.run(f"stty -F {pty} min 0")
        async with program("tail", "-s", "0.05", "-f", pty) as tail:
            assert tail.stdout is not None
            for line in (b"one\n", b"two\n"):
                it.port().feed(memoryview(line))
                assert await tail.stdout.receive_some() == line


@pytest.mark.skipif(not shutil.which("screen"), reason="needs screen")
@pytest.mark.parametrize("command", ["", "minicom -o -D"], ids=["screen", "minicom"])
async def test_screen_shows_a_console_and_sends_what_is_typed(
    mounted: OpenMount, tmp_path: Path, command: str
) -> None:
    """`screen` by itself, or minicom in a window of it."""
    if command:
        needs.programs(*command.split()[:1])
    sessions = tmp_path / "screens"
    sessions.mkdir(mode=0o700)
    screen = "env", "LC_ALL=C.UTF-8", "TERM=vt100", f"SCREENDIR={sessions}", "screen"
    shown = tmp_path / "shown"

    async def act(*words: str) -> None:
        """Have it done as soon as there is a session that does it."""
        do_it = [*screen, "-S", "test", "-X", *words]
        with trio.fail_after(20):
            while (await trio.run_process(do_it, check=False, capture_stdout=True)).returncode:
                pass

    async with mounted(f"=unix:{tmp_path}/sock,console") as it:
        await it.until(lambda: it.port().pty)
        async with (
            await trio.open_unix_socket(f"{tmp_path}/sock") as host,
            program(*screen, "-D", "-m", "-S", "test", *command.split(), it.port().pty),
        ):
            # What is typed before it has set the terminal up may be flushed: again, until heard.
            typed = b""
            while b"alice" not in typed:
                await act("stuff", "alice")
                with trio.move_on_after(0.1):
                    typed += await host.receive_some()
            await host.send_all(b"login: ")
            while not shown.exists() or "login:" not in shown.read_text():
                await act("hardcopy", str(shown))
            await act("quit")


@pytest.mark.skipif(not shutil.which("agetty"), reason="needs agetty")
async def test_agetty_runs_its_login_program_on_a_console(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with mounted(f"=unix:{tmp_path}/sock,console") as it:
        await it.until(lambda: it.port().pty)
        async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
            line = it.port().pty.removeprefix("/dev/")
            words = "setsid", "agetty", "--skip-login", "--noissue", "--login-program"
            async with program(*words, "/bin/cat", "--login-options", "/etc/hostname", line):
                seen = b""
                wanted = Path("/etc/hostname").read_bytes().strip()
                while wanted not in seen:
                    data = await host.receive_some()
                    assert data
                    seen += data

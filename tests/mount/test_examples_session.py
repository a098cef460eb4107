"""The examples that act on a guest's sessions: lock-session.py and power.sh, with fakes below."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, field
from jeepney import HeaderFields, Message, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.trio import DBusConnection, open_dbus_connection
from jeepney.wrappers import unwrap_msg

from .conftest import Mounted, OpenMount, program
from .examples import EXAMPLES, kill_session, next_line, put_in_path

# --- locking the session ------------------------------------------------------------------

_LOGIND = "org.freedesktop.login1"


@define
class FakeLogind:
    """Answers on a private bus as logind does, and remembers what it was asked to lock."""

    address: str
    calls: list[tuple[object, ...]] = field(factory=list)
    refuses: bool = False
    _called: trio.Event = field(factory=trio.Event)

    async def until_called(self, times: int) -> None:
        while len(self.calls) < times:
            self._called = trio.Event()
            await self._called.wait()

    async def serve(self, bus: DBusConnection) -> None:
        while True:
            call = await bus.receive()
            if call.header.message_type is MessageType.method_call:
                await bus.send(self._answer(call))

    def _answer(self, call: Message) -> Message:
        if self.refuses:
            return new_error(call, "org.freedesktop.DBus.Error.AccessDenied", "s", ("not you",))
        self.calls.append((call.header.fields[HeaderFields.member], *call.body))
        self._called.set()
        return new_method_return(call)


@asynccontextmanager
async def fake_logind(folder: Path) -> AsyncIterator[FakeLogind]:
    """Run a bus of our own, with logind's name on it."""
    address = f"unix:path={folder}/bus"
    words = "dbus-daemon", "--session", "--nofork", f"--address={address}", "--print-address=1"
    async with program(*words) as daemon:
        assert daemon.stdout is not None
        assert "unix:path=" in await next_line(daemon.stdout)  # it listens
        bus = await open_dbus_connection(address)
        async with bus, trio.open_nursery() as nursery:
            async with bus.router() as router:
                unwrap_msg(await router.send_and_get_reply(message_bus.RequestName(_LOGIND)))
            logind = FakeLogind(address)
            nursery.start_soon(logind.serve, bus)
            yield logind
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def locking(it: Mounted, bus: str, *session: str) -> AsyncIterator[trio.Process]:
    """Run the example, once it looks at the port."""
    script = str(EXAMPLES / "lock-session.py")
    words = sys.executable, script, str(it.path), "org.viewer", *session
    async with program("env", f"DBUS_SYSTEM_BUS_ADDRESS={bus}", *words) as running:
        yield running


@asynccontextmanager
async def viewer(it: Mounted, path: Path) -> AsyncIterator[None]:
    port = it.port()
    async with await trio.open_unix_socket(str(path)):
        await it.until(lambda: port.host_connected)
        yield
    await it.until(lambda: not port.host_connected)


#: Why they are not run at the host's side.
OF_GUESTS = "lock-session.py is for guests: it asks if the host is there"
needs_bus = pytest.mark.skipif(not shutil.which("dbus-daemon"), reason="needs dbus-daemon")


@define
class Guarded:
    """A mount with a port for a viewer, and the example that guards it."""

    it: Mounted
    logind: FakeLogind
    running: trio.Process
    sock: Path

    async def said(self) -> str:
        assert self.running.stdout is not None
        return await next_line(self.running.stdout)


@asynccontextmanager
async def guarded(mounted: OpenMount, folder: Path, *session: str) -> AsyncIterator[Guarded]:
    sock = folder / "sock"
    async with fake_logind(folder) as logind, mounted(f"org.viewer=unix:{sock}") as it:
        async with locking(it, logind.address, *session) as running:
            await it.until(lambda: it.events_readers)
            yield Guarded(it, logind, running, sock)


@pytest.mark.guest_side(OF_GUESTS)
@needs_bus
async def test_sessions_are_locked_each_time_that_the_viewer_goes(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with guarded(mounted, tmp_path) as guard:
        for times in (1, 2):
            async with viewer(guard.it, guard.sock):
                assert len(guard.logind.calls) == times - 1
            await guard.logind.until_called(times)
            assert guard.logind.calls[-1] == ("LockSessions",)
            assert await guard.said() == "org.viewer: disconnect: locked"


@pytest.mark.guest_side(OF_GUESTS)
@needs_bus
@pytest.mark.expect_log("for unknown port")
async def test_one_session_is_locked_even_if_its_port_is_removed(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with guarded(mounted, tmp_path, "c2") as guard:
        async with viewer(guard.it, guard.sock):
            guard.it.manager.remove(0)
            await guard.logind.until_called(1)
        assert guard.logind.calls == [("LockSession", "c2")]


@pytest.mark.guest_side(OF_GUESTS)
@needs_bus
@pytest.mark.parametrize("end", ["", "umount -f", "without a viewer"])
async def test_the_end_of_the_mount_locks_the_viewed_session(
    mounted: OpenMount, tmp_path: Path, end: str
) -> None:
    port = f"org.viewer=unix:{tmp_path}/sock" if end == "without a viewer" else "org.viewer=null"
    async with fake_logind(tmp_path) as logind, AsyncExitStack() as stack:
        async with mounted(port) as it:
            running = await stack.enter_async_context(locking(it, logind.address))
            await it.until(lambda: it.events_readers)
            if end == "umount -f":
                # It says that the mount is busy, and has aborted it.
                await trio.run_process([*end.split(), str(it.path)], check=False)
        with trio.fail_after(10):
            assert await running.wait() == (end == "umount -f")
        assert logind.calls == ([] if end == "without a viewer" else [("LockSessions",)])


@pytest.mark.guest_side(OF_GUESTS)
@needs_bus
async def test_a_refusal_is_reported_and_the_next_departure_tried_again(
    mounted: OpenMount, tmp_path: Path
) -> None:
    async with guarded(mounted, tmp_path) as guard:
        for refuses, said in ((True, "disconnect: cannot lock: "), (False, "disconnect: locked")):
            guard.logind.refuses = refuses
            async with viewer(guard.it, guard.sock):
                pass
            assert said in await guard.said()


# --- shutting down and logging off --------------------------------------------------------


async def test_the_host_switches_the_guest_off(
    mounted: OpenMount, tmp_path: Path, shell: list[str]
) -> None:
    log = tmp_path / "log"
    for name in ("systemctl", "loginctl"):
        put_in_path(tmp_path / "bin", name, f'echo {name} "$@" >>{log}')
    put_in_path(
        tmp_path / "bin", "loginctl", f'echo loginctl "$@" >>{log}; echo no such user; exit 1'
    )
    path = f"PATH={tmp_path}/bin:{os.environ['PATH']}"
    async with mounted(f"power=unix:{tmp_path}/sock", wait=True) as it:
        words = "setsid", "env", path, *shell, str(EXAMPLES / "power.sh"), str(it.file())
        async with program(*words) as running:
            for question, answer in (
                ("reboot", "ok"),
                ("shutdown", "ok"),
                ("logoff alice", "failed: no such user"),
                ("logoff *", "failed: no such user"),
                ("logoff", "failed: it is shutdown, reboot or logoff USER"),
                ("shutdown now", "failed: it is shutdown, reboot or logoff USER"),
            ):  # each of another host
                async with await trio.open_unix_socket(f"{tmp_path}/sock") as host:
                    await host.send_all(question.encode() + b"\n")
                    assert await next_line(host) == answer
                await it.until(lambda: not it.port().host_connected)
            it.manager.remove(0)
            assert await running.wait() == 0
            await kill_session(running)
    assert log.read_text().splitlines() == [
        "systemctl --no-block reboot",
        "systemctl --no-block poweroff",
        "loginctl terminate-user -- alice",
        "loginctl terminate-user -- *",
    ]


def test_without_a_port_the_usage_is_shown(shell: list[str]) -> None:
    script = str(EXAMPLES / "power.sh")
    done = subprocess.run([*shell, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: power.sh PORT\n")

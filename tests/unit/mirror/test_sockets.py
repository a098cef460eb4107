"""Guests and ports that come and go with the sockets of hypervisors."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, field

from tests.support.hypervisor import Channel, Echo, channel
from tests.support.waiting import until
from vconfs.guest.opener import Opener
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Port
from vconfs.mirror import sockets
from vconfs.mirror.guests import Guest, Guests
from vconfs.mirror.sockets import SocketGuests, Sockets


@define
class Watcher:
    """An observer of the guests, and what it was told."""

    seen: list[str] = field(factory=list)

    def guest_added(self, guest: Guest) -> None:
        self.seen.append(f"add {guest.name}")

    def guest_removed(self, guest: Guest) -> None:
        self.seen.append(f"remove {guest.name}")

    def guest_changed(self, guest: Guest) -> None:
        self.seen.append(f"{'connect' if guest.connected else 'disconnect'} {guest.name}")


@define
class Shown:
    """The guests that are shown."""

    source: SocketGuests
    guests: Guests
    watcher: Watcher

    @property
    def ports(self) -> dict[str, list[str]]:
        """The names of the ports of each guest, by their ids."""
        return {
            name: [port.name.decode() for _, port in sorted(guest.manager.ports.items())]
            for name, guest in sorted(self.guests.by_name.items())
        }

    def port(self, guest: str, name: str) -> Port:
        port = self.guests.by_name[guest].manager.by_name(name.encode())
        assert port is not None
        return port


async def opened(port: Port) -> Opener:
    opener = Opener(1)
    port.open(opener, quiet=True)
    assert port.confirm_open is not None
    await port.confirm_open()
    return opener


def watched(it: Shown) -> list[str]:
    return [folder.path for folder in it.source._watches]


@asynccontextmanager
async def shown(glob: Path | str, **options: object) -> AsyncIterator[Shown]:
    port_options = PortOptions(**options)  # type: ignore[arg-type]
    guests = Guests(lambda guest, port_id, name: port_options)
    it = Shown(SocketGuests(Sockets.parse(f"sockets:{glob}"), guests), guests, Watcher())
    guests.observers.append(it.watcher)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(20):
            await nursery.start(it.source.run)
            yield it
        nursery.cancel_scope.cancel()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def vm(tmp_path: Path, stack: ExitStack) -> dict[str, Channel]:
    """The channels of two guests."""
    names = ("web/agent", "web/log", "db/agent")
    return {name: stack.enter_context(channel(tmp_path / name)) for name in names}


async def test_each_socket_is_a_port_of_its_guest(tmp_path: Path, vm: dict[str, Channel]) -> None:
    async with shown(tmp_path / "*/*", limit=1 << 16) as it:
        assert it.ports == {"db": ["agent"], "web": ["agent", "log"]}
        assert it.watcher.seen == ["add db", "connect db", "add web", "connect web"]
        assert it.guests.by_name["web"].address == str(tmp_path / "web")
        port = it.port("web", "log")
        assert (port.guest, port.limit, port.host_connected) == ("web", 1 << 16, False)
        assert set(os.listdir("/proc/self/fd")), "no socket is connected"
        for server in vm.values():
            with pytest.raises(BlockingIOError):
                server.client  # noqa: B018


@pytest.mark.expect_log("no socket is there yet")
async def test_sockets_come_and_go(tmp_path: Path, stack: ExitStack) -> None:
    async with shown(tmp_path / "vm/*/sockets/%g.s") as it:
        assert it.ports == {}
        (tmp_path / "vm/one").mkdir(parents=True)
        await until(lambda: f"{tmp_path}/vm/one" in watched(it))
        stack.enter_context(channel(tmp_path / "vm/one/sockets/web.s"))
        await until(lambda: it.ports == {"web": ["web.s"]})
        stack.enter_context(channel(tmp_path / "vm/two/sockets/db.s"))
        stack.enter_context(channel(tmp_path / "vm/two/sockets/db.other"))
        await until(lambda: it.ports == {"db": ["db.s"], "web": ["web.s"]})
        (tmp_path / "vm/two/sockets").rename(tmp_path / "vm/two/elsewhere")
        await until(lambda: it.ports == {"web": ["web.s"]})
        (tmp_path / "vm/two/elsewhere").rename(tmp_path / "vm/two/sockets")
        await until(lambda: it.ports == {"db": ["db.s"], "web": ["web.s"]})
        (tmp_path / "vm/one/sockets/web.s").unlink()
        await until(lambda: it.ports == {"db": ["db.s"]})
        assert it.watcher.seen[-2:] == ["disconnect web", "remove web"]


@pytest.mark.expect_log("no socket is there yet")
async def test_a_folder_that_is_made_anew_is_watched_anew(tmp_path: Path, stack: ExitStack) -> None:
    folder = tmp_path / "web"
    async with shown(tmp_path / "*/*") as it:
        for number in range(3):
            stack.enter_context(channel(folder / f"agent{number}"))
            await until(lambda number=number: it.ports == {"web": [f"agent{number}"]})  # type: ignore[misc]
            (folder / f"agent{number}").unlink()
            folder.rmdir()
            folder.mkdir()
            await until(lambda: it.ports == {})


@pytest.mark.expect_log("trying again")
async def test_a_socket_that_is_replaced_is_the_same_port(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "web/agent"
    first = stack.enter_context(channel(path))
    async with shown(tmp_path / "*/*") as it, trio.open_nursery() as nursery:
        port = it.port("web", "agent")
        nursery.start_soon(opened, port)
        stream = await first.accept()
        await until(lambda: port.host_connected)
        first.close()
        await stream.aclose()
        await until(lambda: not port.host_connected)
        await trio.sleep(0.5)  # so that the pauses have grown
        second = stack.enter_context(channel(path))
        with trio.fail_after(1):
            stream = await second.accept()
        await until(lambda: port.host_connected)
        assert it.port("web", "agent") is port
        assert it.watcher.seen == ["add web", "connect web"]
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_socket_that_is_gone_takes_its_port_with_it(
    tmp_path: Path, vm: dict[str, Channel]
) -> None:
    async with shown(tmp_path / "*/*") as it, trio.open_nursery() as nursery:
        port = it.port("web", "log")
        nursery.start_soon(opened, port)
        stream = await vm["web/log"].accept()
        vm["web/log"].path.unlink()
        await until(lambda: port.removed)
        assert await stream.receive_some() == b""
        assert it.ports == {"db": ["agent"], "web": ["agent"]}
        await stream.aclose()


@pytest.mark.expect_log("not a socket")
async def test_what_is_not_a_socket_is_one_line_in_the_log(
    tmp_path: Path, vm: dict[str, Channel], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "web/qemu.log").touch()
    async with shown(tmp_path / "*/*") as it:
        for number in range(3):
            (tmp_path / f"web/{number}").touch()
            (tmp_path / f"web/{number}").unlink()
            await until(lambda: it.source._changed.is_set())
            await until(lambda: not it.source._changed.is_set())
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count(f"{tmp_path}/web/qemu.log: not a socket") == 1


@pytest.mark.expect_log("cannot be watched")
async def test_without_inotify_it_looks_now_and_then(
    tmp_path: Path, vm: dict[str, Channel], stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, wanted: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(sockets, "watching_aside", refuse)
    monkeypatch.setattr(sockets, "_LOOK_UNWATCHED", 0.05)
    async with shown(tmp_path / "*/*") as it:
        stack.enter_context(channel(tmp_path / "late/agent"))
        await until(lambda: "late" in it.ports)
        (tmp_path / "late/agent").unlink()
        await until(lambda: "late" not in it.ports)


@pytest.mark.expect_log("Too many open files")
async def test_ports_stay_while_a_folder_cannot_be_listed(
    tmp_path: Path, vm: dict[str, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with shown(tmp_path / "*/*") as it:
        watcher = it.watcher.seen.copy()
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", refuse)
            for number in range(3):
                changed = it.source._changed
                (tmp_path / str(number)).mkdir()
                await until(lambda changed=changed: it.source._changed is not changed)  # type: ignore[misc]
        assert it.ports == {"db": ["agent"], "web": ["agent", "log"]}
        assert it.watcher.seen == watcher


async def test_many_come_at_once(tmp_path: Path, vm: dict[str, Channel], stack: ExitStack) -> None:
    async with shown(tmp_path / "*/*") as it:
        for number in range(300):
            stack.enter_context(channel(tmp_path / f"vm{number}/agent"))
        await until(lambda: len(it.guests.by_name) == 302)
        for number in range(300):
            (tmp_path / f"vm{number}/agent").unlink()
        await until(lambda: len(it.guests.by_name) == 2)
        assert str(tmp_path) in watched(it)


async def test_the_ends_drops_are_counted(tmp_path: Path, stack: ExitStack) -> None:
    echo = Echo(tmp_path / "web/agent")
    async with trio.open_nursery() as nursery:
        await nursery.start(echo.run)
        async with shown(tmp_path / "*/*") as it:
            port = it.port("web", "agent")
            opener = await opened(port)
            port.write_nowait(b"hello")
            await until(lambda: port.queued == 5)
            await it.source.begin_ending()
            assert it.source.owed(readers=True) == {port: 5}
            assert it.source.owed(readers=False) == {}
            with pytest.raises(OSError, match="not connected"):
                port.write_nowait(b"more")
            assert b"".join(port.read_nowait(100, opener)) == b"HELLO"
            assert it.source.owed(readers=True) == {port: 0}
            port.close(opener)
        assert echo.clients == 1
        nursery.cancel_scope.cancel()

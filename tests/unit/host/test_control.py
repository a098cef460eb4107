"""The control socket: what its clients can do to a host end, and what they cannot."""

from __future__ import annotations

import json
import os
import socket
import stat
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from jsonschema import Draft202012Validator

from vconfs.errors import VconfsError
from vconfs.guest.port import Opener
from vconfs.host.control_socket import serve_control
from vconfs.host.fleet import Fleet
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPort, HostPortSpec
from vconfs.protocol.control import LINE_MAX
from vconfs.protocol.tap import TAPPERS_MAX
from vconfs.system.tasks import open_background
from vconfs.testing import Ends, Puppet, open_ends

VALIDATOR = Draft202012Validator(
    json.loads(files("vconfs.protocol").joinpath("control.schema.json").read_text())
)


@define
class Caller:
    """A client; every line that it says or hears is checked against the schema."""

    stream: trio.SocketStream
    _buffer: bytearray = field(factory=bytearray)

    async def line(self) -> bytes:
        """Wait for a line; none: the host end has hung up."""
        while b"\n" not in self._buffer:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:  # it did not read all that was said
                data = b""
            if not data:
                return b""
            self._buffer += data
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        VALIDATOR.validate(json.loads(line))
        return bytes(line)

    async def reply(self) -> Any:
        """Return the ports of the next reply, or its error."""
        reply = json.loads(await self.line())
        return reply["ports"] if reply["ok"] else reply["error"]

    async def ask(self, op: str, **arguments: object) -> Any:
        request = {"op": op, **arguments}
        VALIDATOR.validate(request)
        await self.stream.send_all(json.dumps(request).encode() + b"\n")
        return await self.reply()


@asynccontextmanager
async def calling(path: Path) -> AsyncIterator[Caller]:
    async with await trio.open_unix_socket(path) as stream:
        caller = Caller(stream)
        assert await caller.line() == b'{"vconfs-control": 1}'
        yield caller


@asynccontextmanager
async def controlled(host: Host | Fleet, path: Path) -> AsyncIterator[None]:
    async with open_background() as nursery:
        await nursery.start(serve_control, host, str(path))
        yield


@define
class Control:
    ends: Ends
    puppet: Puppet
    path: Path
    call: Caller

    @property
    def port(self) -> HostPort:
        return self.ends.host.ports[0]


@pytest.fixture(params=["v8", "virtio1"])
async def control(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Control]:
    """A host end with one port, a guest, and a client of the control socket."""
    puppet, path = Puppet(), tmp_path / "ctl"
    with trio.fail_after(20):
        async with (
            open_ends([HostPortSpec(b"first", puppet)], dialect=request.param) as ends,
            controlled(ends.host, path),
            calling(path) as call,
        ):
            yield Control(ends, puppet, path, call)


# What a client can do


async def test_list_shows_what_a_port_is_and_does(control: Control) -> None:
    guest = control.ends.ports[0]
    guest.open(Opener(1))
    guest.write_nowait(b"three")
    await control.puppet.port.send(b"four")
    assert await control.call.ask("list") == [
        {
            "id": 0,
            "name": "first",
            "chardev": "",
            "console": False,
            "cols": 0,
            "rows": 0,
            "cache": False,
            "limit": 0,
            "host_limit": 1 << 20,
            "host": True,
            "guest": "open",
            "throttled_by_hand": False,
            "throttled": False,
            "guest_throttled": False,
            "queued": 5,
            "bytes_in": 5,
            "bytes_out": 4,
            "delivered": 0,
            "dropped": 0,
            "resets": 0,
        }
    ]


async def test_a_port_is_added_and_removed_and_what_it_had_is_free_at_once(
    control: Control, tmp_path: Path
) -> None:
    spec = f"late=unix:{tmp_path}/late,cache"
    for _ in range(3):
        [port] = await control.call.ask("add", spec=spec)
        assert (port["id"], port["name"], port["cache"]) == (1, "late", True)
        assert port["chardev"] == f"unix:{tmp_path}/late"
        assert control.ends.ports[1].name == b"late"
        assert len(await control.call.ask("list")) == 2
        assert await control.call.ask("remove", port="late") == []
        assert sorted(control.ends.ports) == [0]
        assert not (tmp_path / "late").exists()


async def test_a_port_is_renamed_and_has_both_addresses(control: Control) -> None:
    [port] = await control.call.ask("rename", port="first", name="\udcff\xe9 x")
    assert port["name"] == "\udcff\xe9 x"
    assert control.ends.ports[0].name == b"\xff\xc3\xa9 x"
    [port] = await control.call.ask("rename", port="\udcff\xe9 x", name="7")
    [port] = await control.call.ask("rename", port="7", name="")
    assert await control.call.ask("rename", port="", name="a") == "there is no port ''"
    [port] = await control.call.ask("rename", port=0, name="a")
    assert control.ends.ports[0].name == b"a"


async def test_settings_reach_the_guest(control: Control) -> None:
    [port] = await control.call.ask("resize", port=0, cols=132, rows=43)
    assert (port["cols"], port["rows"]) == (132, 43)
    assert control.ends.ports[0].size == (132, 43)
    [port] = await control.call.ask("limit", port=0, mib=3)
    assert port["limit"] == 3
    [port] = await control.call.ask("cache", port=0, on=True)
    assert port["cache"]
    if control.ends.driver.throttles:  # v8: the standard has no such messages
        assert control.ends.ports[0].limit == 3 << 20
        assert control.ends.ports[0].cache


async def test_throttle_holds_the_guest_back_until_it_is_undone(control: Control) -> None:
    [port] = await control.call.ask("throttle", port=0, on=True)
    assert (port["throttled_by_hand"], port["throttled"]) == (True, True)
    guest = control.ends.ports[0]
    v8 = control.ends.driver.throttles
    if v8:
        assert guest.host_throttled
    else:
        guest.write_nowait(b"later")
        assert control.port.queued == 0
    [port] = await control.call.ask("throttle", port=0, on=False)
    assert (port["throttled_by_hand"], port["throttled"]) == (False, False)
    assert not guest.host_throttled
    if v8:
        guest.write_nowait(b"later")
    assert await control.puppet.port.receive() == b"later"


async def test_disconnect_hangs_up_the_client_that_is_there(
    control: Control, tmp_path: Path
) -> None:
    path = tmp_path / "chat"
    await control.call.ask("add", spec=f"chat=unix:{path}")
    no_client = "port 'chat' has no client that could be hung up"
    assert await control.call.ask("disconnect", port="chat") == no_client
    for _ in range(3):
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(b"hello")
            assert b"".join(map(bytes, await control.ends.ports[1].read(5))) == b"hello"
            await control.call.ask("disconnect", port="chat")
            assert await client.receive_some() == b""
    assert not control.ends.ports[1].host_connected


# What it cannot


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"op": "remove", "port": 5}, "there is no port 5"),
        ({"op": "remove", "port": -1}, "there is no port -1"),
        ({"op": "remove", "port": "x"}, "there is no port 'x'"),
        ({"op": "add", "spec": "x"}, "'x' is not NAME=CHARDEV, for example "),
        ({"op": "add", "spec": "x=what:"}, "unknown chardev 'what': it is one of "),
        ({"op": "add", "spec": "x=echo,id=0"}, "port id 0 is taken by 'first'"),
        ({"op": "add", "spec": "x=echo,id=99999"}, "id is a number from 0 to 32767"),
        ({"op": "add", "spec": "x=unix:/no/where"}, "/no/where: the folder /no does not exist"),
        ({"op": "rename", "port": 0, "name": "x" * 5000}, "a port name has at most 4080 bytes"),
        ({"op": "rename", "port": 0, "name": "a\0"}, "a port name has no NUL in it"),
        ({"op": "disconnect", "port": 0}, "port 'first' has no client that could be hung up"),
    ],
)
async def test_what_cannot_be_done_is_refused_and_changes_nothing(
    control: Control, asked: dict[str, Any], error: str
) -> None:
    before = await control.call.ask("list")
    assert (await control.call.ask(**asked)).startswith(error)
    assert await control.call.ask("list") == before


@pytest.mark.expect_log("have the same name")
async def test_a_name_that_two_ports_have_is_no_address(control: Control) -> None:
    await control.call.ask("add", spec="first=null,id=5")
    error = "2 ports have the name 'first': use an id, one of 0, 5"
    assert await control.call.ask("remove", port="first") == error
    assert await control.call.ask("remove", port=5) == []
    [_] = await control.call.ask("throttle", port="first", on=True)


async def test_garbage_gets_an_error_and_the_next_request_its_answer(control: Control) -> None:
    for garbage in (b"\0\xff\n", b"list\n", b"{}\n", b"[" * 50_000 + b"\n"):
        await control.call.stream.send_all(garbage)
        assert isinstance(await control.call.reply(), str)
    assert len(await control.call.ask("list")) == 1


async def test_a_line_too_long_ends_the_conversation_and_no_other(control: Control) -> None:
    async with calling(control.path) as other:
        with pytest.raises(trio.BrokenResourceError):
            await other.stream.send_all(b"x" * 1000 * LINE_MAX)
        last = await other.line()
        if last:  # what it did not read may have taken the error with it
            assert json.loads(last)["error"] == f"a line has at most {LINE_MAX} bytes"
        assert await other.line() == b""
    assert len(await control.call.ask("list")) == 1


async def test_a_last_line_without_an_end_is_answered(control: Control) -> None:
    await control.call.stream.send_all(b'{"op": "list"}\n{"op": "list"}')
    await control.call.stream.send_eof()
    assert len(await control.call.reply()) == 1
    assert len(await control.call.reply()) == 1
    assert await control.call.line() == b""


# Several clients


async def test_many_clients_are_answered(control: Control) -> None:
    async def client() -> None:
        async with calling(control.path) as call:
            for _ in range(3):
                assert len(await call.ask("list")) == 1

    async with trio.open_nursery() as nursery:
        for _ in range(100):  # more than are served at a time
            nursery.start_soon(client)


async def test_a_client_that_reads_nothing_stops_no_other_and_costs_little(
    control: Control,
) -> None:
    async def flood(slow: Caller) -> None:
        while True:
            await slow.stream.send_all(b'{"op": "list"}\n' * 1000)

    async with calling(control.path) as slow, open_background() as nursery:
        nursery.start_soon(flood, slow)
        await trio.testing.wait_all_tasks_blocked(0.1)  # it has to wait for its answers
        assert len(await control.call.ask("list")) == 1
    assert len(await control.call.ask("list")) == 1


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(control: Control) -> None:
    for said in (b"", b'{"op": ', b'{"op": "list"}\n' * 10_000):
        async with calling(control.path) as other:
            with trio.move_on_after(0.05):
                await other.stream.send_all(said)
    assert len(await control.call.ask("list")) == 1


async def test_a_tap_shows_what_passes_through_a_port_until_the_client_leaves(
    control: Control,
) -> None:
    [port] = await control.call.ask("tap", ports=["first"])
    assert port["id"] == 0
    assert json.loads(await control.call.line())["event"] == "present"
    guest = control.ends.ports[0]
    guest.open(Opener(1))
    assert json.loads(await control.call.line())["event"] == "open"
    await guest.write(b"from the guest")
    came = json.loads(await control.call.line())
    assert (came["event"], came["name"]) == ("in", "first")
    assert b64decode(came["data"]) == b"from the guest"
    await control.puppet.port.send(b"to the guest")
    assert b64decode(json.loads(await control.call.line())["data"]) == b"to the guest"
    await control.call.stream.aclose()
    while control.port.tap is not None:
        await trio.testing.wait_all_tasks_blocked()


async def test_a_tap_without_ports_shows_those_to_come(control: Control) -> None:
    assert len(await control.call.ask("tap", ports=[])) == 1
    await control.ends.host.add(HostPortSpec(b"later", Puppet()))
    present, added = [json.loads(await control.call.line()) for _ in range(2)]
    assert (present["event"], added["event"], added["name"]) == ("present", "add", "later")


async def test_a_tap_of_a_port_that_is_not_there_is_refused(control: Control) -> None:
    assert await control.call.ask("tap", ports=["first", 7]) == "there is no port 7"
    assert len(await control.call.ask("list")) == 1


async def test_tappers_are_bounded(control: Control) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(TAPPERS_MAX):
            other = await stack.enter_async_context(calling(control.path))
            assert len(await other.ask("tap", ports=[])) == 1
        assert "16 programs already tap" in await control.call.ask("tap", ports=[])


async def test_a_client_that_taps_and_does_not_read_is_told_what_it_missed(
    control: Control,
) -> None:
    await control.call.ask("tap", ports=[0])
    guest, sent = control.ends.ports[0], 0
    guest.open(Opener(1))
    while sent < 12 << 20:
        sent += await guest.write(bytes(1 << 16))
        await control.port.receive()
    shown = lost = 0
    while shown + lost < sent:
        record = json.loads(await control.call.line())
        shown += len(b64decode(record.get("data", "")))
        lost += record.get("bytes", 0)
    assert (shown + lost, lost > 0) == (sent, True)


class Slow(Puppet):
    """A chardev that starts when it is told to."""

    def __init__(self, go: trio.Event, error: str = "") -> None:
        super().__init__()
        self.go = go
        self.error = error

    async def run(
        self, port: Any, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await self.go.wait()
        if self.error:
            raise VconfsError(self.error)
        await super().run(port, task_status)


@pytest.mark.parametrize("error", ["", "no such bus"])
async def test_a_port_that_is_being_added_is_not_listed_yet(control: Control, error: str) -> None:
    go, host = trio.Event(), control.ends.host
    async with trio.open_nursery() as nursery:

        async def add() -> None:
            if error:
                with pytest.raises(VconfsError, match=error):
                    await host.add(HostPortSpec(b"slow", Slow(go, error)))
            else:
                assert (await host.add(HostPortSpec(b"slow", Slow(go)))).id == 1

        nursery.start_soon(add)
        await trio.testing.wait_all_tasks_blocked()
        assert await control.call.ask("remove", port=1) == "there is no port 1"
        taken = "port id 1 is taken by 'slow'"
        assert await control.call.ask("add", spec="x=echo,id=1") == taken
        [port] = await control.call.ask("add", spec="x=echo")
        assert port["id"] == 2
        go.set()
    await control.call.ask("remove", port="x")
    assert len(await control.call.ask("list")) == (1 if error else 2)


# The socket


async def test_only_its_owner_may_use_it(tmp_path: Path) -> None:
    path, before = tmp_path / "ctl", os.umask(0)
    try:
        async with open_host([]) as host, controlled(host, path):
            assert stat.filemode(path.stat().st_mode) == "srw-------"
    finally:
        os.umask(before)
    assert not path.exists()


def _stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


async def test_a_socket_without_a_listener_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ctl"
    _stale(path)
    async with open_host([]) as host, controlled(host, path), calling(path) as call:
        assert await call.ask("list") == []


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: path.write_text("mine"), "exists and is not a socket: choose another path"),
        (lambda path: path.mkdir(), "exists and is not a socket: choose another path"),
    ],
)
async def test_what_is_in_the_way_is_left_alone(
    tmp_path: Path, make: Callable[[Path], object], error: str
) -> None:
    path = tmp_path / "ctl"
    make(path)
    async with open_host([]) as host:
        with pytest.raises(VconfsError, match=error):
            async with controlled(host, path):
                pass
    assert path.exists()


async def test_two_host_ends_do_not_share_one(tmp_path: Path) -> None:
    path = tmp_path / "ctl"
    async with open_host([]) as host, controlled(host, path):
        with pytest.raises(VconfsError, match=f"{path} is in use by another program"):
            async with controlled(host, path):
                pass
        async with calling(path) as call:
            assert await call.ask("list") == []

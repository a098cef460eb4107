"""A host end with several guests: who may come, by which name, with which ports."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.waiting import until
from vconfs.errors import VconfsError
from vconfs.guest.connection import Connection
from vconfs.guest.devices import parse_device
from vconfs.guest.port import Opener, Port
from vconfs.guest.ports import PortManager
from vconfs.host.fleet import NO_LIMITS, Fleet, GuestSpec, Limits, Template, open_fleet
from vconfs.host.listeners import parse_listener
from vconfs.host.spec import parse_port
from vconfs.protocol import stream, v8
from vconfs.protocol.stream import Role
from vconfs.syntax.guest_names import fill_in, folders_of, guest_name, name_for
from vconfs.system.tasks import open_background

pytestmark = pytest.mark.expect_log("guest [a-z0-9]+ lost: the guest end leaves", "guest refused: ")

PORTS = ("echo=echo", "of-%g=null")


@asynccontextmanager
async def fleet_at(
    path: Path,
    *names: str,
    template: Template | None = None,
    ports: Sequence[str] = PORTS,
    limits: Limits = NO_LIMITS,
) -> AsyncIterator[Fleet]:
    """A fleet of these guests, and of any guest if there is a template, at a unix socket."""
    async with (
        open_fleet(template, limits=limits) as fleet,
        open_background() as nursery,
    ):
        for name in names:
            await fleet.add(Template(ports).guest(name))
        listener = parse_listener(f"stream:unix:{path}/any,guest=*")
        await nursery.start(fleet.listen, listener)
        yield fleet


@asynccontextmanager
async def guest_at(
    url: str, name: str | None = None, patience: float = 0
) -> AsyncIterator[PortManager]:
    manager = PortManager()
    async with open_background() as nursery:
        connection = Connection(parse_device(url, name=name), manager, patience=patience)
        await nursery.start(connection.run)
        yield manager


async def echoed(port: Port, data: bytes) -> bytes:
    """Send data to an echo, and return as many bytes of what comes back."""
    came = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.write, data)
        while len(came) < len(data):
            came += b"".join(await port.read(len(data) - len(came)))
    return came


async def refused(url: str, name: str) -> str:
    with pytest.raises(VconfsError) as error:
        async with guest_at(url, name):
            pass
    return str(error.value)


async def test_each_guest_has_its_own_ports(tmp_path: Path) -> None:
    url = f"stream:unix:{tmp_path}/any"
    async with (
        fleet_at(tmp_path, "web1", "db1") as fleet,
        guest_at(url, "db1") as db1,
        guest_at(url, "web1") as web1,
    ):
        assert [port.name for port in web1.ports.values()] == [b"echo", b"of-web1"]
        assert [port.name for port in db1.ports.values()] == [b"echo", b"of-db1"]
        assert {name for name, host in fleet.guests.items() if host.guest} == {"web1", "db1"}
        for manager, data in ((web1, b"web"), (db1, b"db")):
            manager.ports[0].open(Opener(1))
            assert await echoed(manager.ports[0], data) == data
        assert fleet.find("web1").ports[0].counters.bytes_in == 3


async def test_names_that_are_refused(tmp_path: Path) -> None:
    url = f"stream:unix:{tmp_path}/any"
    async with fleet_at(tmp_path, "web1"), guest_at(url, "web1") as web1:
        assert await refused(url, "web1") == "guest 'web1' is connected already"
        assert await refused(url, "web2") == "there is no guest 'web2' at this host end"
        assert web1.ports[0].attached


@pytest.mark.parametrize(
    "name", ["../../etc", "..", "a/b", "", ".hidden", "a b", "$(id)", "é", "x" * 65]
)
async def test_a_name_that_is_a_path_makes_no_guest(tmp_path: Path, name: str) -> None:
    template = Template([f"agent=unix:{tmp_path}/%g/agent"])
    async with fleet_at(tmp_path, template=template) as fleet:
        guest = stream.Connection(Role.GUEST)
        sock = await trio.open_unix_socket(f"{tmp_path}/any")
        async with sock:
            await sock.send_all(guest.hello(v8.FEATURES | stream.NAMES))
            while (event := guest.next_event()) is None:
                guest.feed(await sock.receive_some())
            await sock.send_all(guest.answer() + guest.name(name))
            while (event := guest.next_event()) is None:
                guest.feed(await sock.receive_some())
        assert isinstance(event, stream.Closed)
        assert "cannot be the name of a guest" in event.reason
        assert not fleet.guests
        assert os.listdir(tmp_path) == ["any"]


async def test_a_guest_that_says_no_name_is_refused(tmp_path: Path) -> None:
    async with fleet_at(tmp_path, "web1"):
        guest = stream.Connection(Role.GUEST)
        sock = await trio.open_unix_socket(f"{tmp_path}/any")
        async with sock:
            await sock.send_all(guest.hello(v8.FEATURES))
            seen: list[object] = []
            while not any(isinstance(event, stream.Closed) for event in seen):
                guest.feed(await sock.receive_some())
                while (event := guest.next_event()) is not None:
                    seen.append(event)
                await sock.send_all(guest.answer())
        assert seen[-1] == stream.Closed(
            "this guest end says no name: it is older than the host end"
        )


async def test_guests_of_a_template_come_by_themselves_and_come_back(tmp_path: Path) -> None:
    url = f"stream:unix:{tmp_path}/any"
    template = Template([f"agent=unix:{tmp_path}/%g/agent,cache"])
    async with fleet_at(tmp_path, template=template) as fleet:
        async with guest_at(url, "web1") as web1:
            assert web1.ports[0].name == b"agent"
            web1.ports[0].open(Opener(1))
            await web1.ports[0].write(b"kept")
        host = fleet.find("web1")
        async with (
            guest_at(url, "web1"),
            await trio.open_unix_socket(f"{tmp_path}/web1/agent") as agent,
        ):
            assert fleet.find("web1") is host
            assert await agent.receive_some() == b"kept"
        await fleet.remove("web1")
        assert not fleet.guests
        assert os.listdir(tmp_path) == ["any"]
        with pytest.raises(VconfsError, match="there is no guest 'web1'"):
            await fleet.remove("web1")


async def test_guests_that_have_left_make_room_for_others(tmp_path: Path) -> None:
    url = f"stream:unix:{tmp_path}/any"
    async with fleet_at(
        tmp_path, "fixed", template=Template(["echo=echo"]), limits=Limits(guests=3)
    ) as fleet:
        async with guest_at(url, "one"):
            for name in ("two", "three", "four"):
                async with guest_at(url, name):
                    assert name in fleet.guests
                await until(lambda: fleet.find(name).guest is None)  # noqa: B023
            assert set(fleet.guests) == {"fixed", "one", "four"}
            async with guest_at(url, "five"):
                assert await refused(url, "six") == "there are 3 guests already"


async def test_the_python_api_adds_and_removes_guests(tmp_path: Path) -> None:
    async with open_fleet() as fleet:
        await fleet.add(GuestSpec("web1"))
        with pytest.raises(VconfsError, match="there is a guest 'web1' already"):
            await fleet.add(GuestSpec("web1"))
        with pytest.raises(VconfsError, match=r"there is no \[template\]"):
            await fleet.add_by_name("web2")
        assert fleet.find(None) is fleet.guests["web1"]
        await fleet.remove("web1")
        await fleet.add(GuestSpec("web1"))


@pytest.mark.expect_log("device lost: the host end leaves", "; trying again")
async def test_a_guest_that_comes_while_it_is_removed_or_the_host_end_ends(tmp_path: Path) -> None:
    url = f"stream:unix:{tmp_path}/any"
    template = Template([f"agent=unix:{tmp_path}/%g/agent"])
    async with (
        fleet_at(tmp_path, template=template) as fleet,
        guest_at(url, "web1") as web1,
        await trio.open_unix_socket(f"{tmp_path}/web1/agent") as agent,
        trio.open_nursery() as nursery,
    ):
        port = web1.ports[0]
        port.open(Opener(1))
        await until(lambda: port.host_connected)
        await port.write(bytes(1 << 20))  # the agent does not read it yet
        nursery.start_soon(fleet.remove, "web1")
        await until(lambda: "web1" not in fleet.guests)
        assert await refused(url, "web1") == "guest 'web1' is being removed"
        nursery.start_soon(fleet.end)
        await until(lambda: fleet._ended)
        assert await refused(url, "web2") == "the host end is ending"
        while await agent.receive_some():
            pass


async def test_a_guest_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    template = Template([f"a=unix:{tmp_path}/%g/a", f"b=unix:{tmp_path}/taken"])
    async with open_fleet(template) as fleet:
        for _ in range(2):
            with pytest.raises(VconfsError, match="exists and is not a socket"):
                await fleet.add_by_name("web1")
            assert not fleet.guests
            assert os.listdir(tmp_path) == ["taken"]


async def test_a_vhost_user_guest_has_a_socket_of_its_own(tmp_path: Path) -> None:
    template = Template(["echo=echo"], [f"vhost-user:{tmp_path}/%g.sock"])
    async with open_fleet(template) as fleet:
        for name in ("web1", "web2"):
            await fleet.add_by_name(name)
            async with guest_at(f"vhost-user:{tmp_path}/{name}.sock") as manager:
                manager.ports[0].open(Opener(1))
                assert await echoed(manager.ports[0], b"hi") == b"hi"
            assert fleet.find(name).ports[0].counters.bytes_in == 2


async def test_a_ceiling_of_memory_for_a_guest_and_for_all() -> None:
    template = Template(["a=null,host-limit=1000", "b=null,host-limit=500"])
    async with open_fleet(template, limits=Limits(memory=4000, guest_memory=2000)) as fleet:
        first = await fleet.add_by_name("one")
        with pytest.raises(VconfsError, match=r"guest one would keep up to 2001 bytes .* the 2000"):
            await first.add(parse_port("c=null,host-limit=501"))
        await first.add(parse_port("c=null,host-limit=500"))
        await fleet.add_by_name("two")
        for _ in range(3):
            with pytest.raises(VconfsError, match=r"all guests would keep up to .* of the 4000"):
                await fleet.add_by_name("three")
        assert sorted(fleet.guests) == ["one", "two"]
        first.remove(0)
        await fleet.add_by_name("three")
        await fleet.remove("two")
        await fleet.add_by_name("two")


def test_names_in_texts() -> None:
    assert fill_in("unix:/run/%g/a-%g,%%g %s", "web1") == "unix:/run/web1/a-web1,%g %s"
    assert folders_of("unix:/run/%g/a,cache", "x") == ["/run/x"]
    assert folders_of("file:/var/log/%g.log", "x") == []
    assert [name_for(f"stream:unix:{it}") for it in ("/run/vcon.sock", "a", "/")] == [
        "vcon",
        "unix-a",
        "guest",
    ]
    assert name_for("vhost-user:/run/web1.sock,inband") == "web1"
    assert guest_name("web-1.example_x") == "web-1.example_x"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("vhost-user:/run/s,guest=*", "guests say no name"),
        ("stream:unix:/run/s,guest=a/b", "cannot be the name of a guest"),
        ("stream:unix:/run/s,guest=a,guest=b", "guest is given twice"),
    ],
)
def test_listeners_that_are_refused(url: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_listener(url)


def test_whose_a_listener_is() -> None:
    assert parse_listener("stream:unix:/run/vcon.sock").name == "vcon"
    assert parse_listener("stream:unix:/run/s,guest=*,window=4096").guest == "*"
    assert parse_listener("vhost-user:/run/s,inband,guest=web1").name == "web1"
    assert parse_listener("stream:unix:/run/a,,guest").guest == ""

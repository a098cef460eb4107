"""Chardevs of other packages: found by entry point, and what can be wrong with them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from tests.support.packages import BUS, make_package
from vconfs.guest.port import PortOptions
from vconfs.host import HostPortSpec, PortSide, VconfsError, open_host, parse_chardev, parse_port
from vconfs.testing import Puppet, open_ends


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path; what was imported from it is forgotten."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    monkeypatch.delitem(sys.modules, "tiny_bus", raising=False)
    return path


async def test_it_serves_a_port_like_ours(folder: Path) -> None:
    make_package(folder, BUS)
    async with open_ends([parse_port("news=bus:sport,cache,id=3")], PortOptions()) as ends:
        port = ends.ports[3]
        with trio.fail_after(20):
            assert b"".join(map(bytes, await port.read(100))) == b"welcome to sport\n"
            port.write_nowait(b"hello\n")
            assert b"".join(map(bytes, await port.read(100))) == b"HELLO\n"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (BUS, "bus needs a topic: bus:TOPIC"),
        ("import nosuchmodule", "broken: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("1 +", "broken: SyntaxError: invalid syntax (tiny_bus.py, line 1)"),
        ("", "broken: AttributeError: module 'tiny_bus' has no attribute 'Bus'"),
        (
            "class Bus: pass",
            "broken: TypeError: tiny_bus:Bus is not a subclass of vconfs.host.Chardev",
        ),
        (
            "def Bus(argument): pass",
            "broken: TypeError: tiny_bus:Bus is not a subclass of vconfs.host.Chardev",
        ),
        (BUS.replace("not argument", "argument.nothing"), "broken: AttributeError: 'str' object"),
        (BUS.replace("async def run", "async def serve"), "broken: TypeError: "),
        (
            BUS.replace("return cls(argument)", "return 5"),
            "broken: TypeError: parse returned 5, which is not a Chardev",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "broken" in value else "",
)
def test_what_is_wrong_with_it_names_its_package(folder: Path, code: str, error: str) -> None:
    make_package(folder, code)
    with pytest.raises(ValueError) as caught:
        parse_chardev("bus:" if error.startswith("bus") else "bus:x")
    broken = "chardev 'bus' of package tiny-bus is "
    assert str(caught.value).startswith(broken + error if "broken" in error else error)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_installed_later_is_found(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown chardev 'bus'"):
        parse_chardev("bus:x")
    make_package(folder, BUS)
    assert parse_chardev("bus:x")


def test_two_packages_with_the_same_kind(folder: Path) -> None:
    make_package(folder, BUS)
    make_package(folder, BUS, name="other-bus")
    with pytest.raises(ValueError, match="'bus' is in package other-bus and package tiny-bus: rem"):
        parse_chardev("bus:x")


def test_an_unknown_kind_names_those_of_other_packages_too(folder: Path) -> None:
    make_package(folder, BUS)
    with pytest.raises(ValueError, match="unknown chardev 'car': it is one of bus, connect, "):
        parse_chardev("car:x")


@pytest.mark.parametrize(
    ("topic", "code", "error"),
    [
        ("nowhere", BUS, "bus: there is no topic nowhere: choose another"),
        (
            "x",
            BUS.replace("port.connect()", "port.conect()"),
            "its chardev failed: AttributeError: 'HostPort' object has no attribute 'conect'",
        ),
        (
            "x",
            BUS.replace(
                "port.connect()",
                "async with trio.open_nursery() as nursery: int('x')",
            ),
            "its chardev failed: ValueError: invalid literal for int() with base 10: 'x'",
        ),
    ],
)
async def test_a_chardev_that_cannot_start_leaves_the_host_end_as_it_was(
    folder: Path, topic: str, code: str, error: str
) -> None:
    make_package(folder, code)
    async with open_host([parse_port("first=echo")]) as host:
        with pytest.raises(VconfsError) as caught:
            await host.add(parse_port(f"x=bus:{topic}"))
        assert str(caught.value) == error
        assert sorted(host.ports) == [0]


async def test_a_chardev_that_fails_later_loses_only_its_connection(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_package(folder, BUS)
    async with open_ends([parse_port("first=echo"), parse_port("news=bus:sport")]) as ends:
        news, first = ends.ports[1], ends.ports[0]
        with trio.fail_after(20):
            news.write_nowait(b"crash\n")
            await ends.host.ports[1].ended.wait()
            assert not news.host_connected
            first.write_nowait(b"and on")
            assert b"".join(map(bytes, await first.read(100))) == b"and on"
        assert caplog.messages == ["port 'news': its chardev failed: KeyError: 'oh'"]
        ends.host.remove(1)
        await ends.host.add(parse_port("news=bus:again"))
        assert ends.ports[1].host_connected


class Sore(Puppet):
    """A chardev that cannot be ended in peace."""

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await super().run(port, task_status)
            finally:
                raise OSError("no bus")


@pytest.mark.parametrize("how", ["remove", "end"])
async def test_a_chardev_that_fails_while_it_is_ended_is_only_logged(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_host([HostPortSpec(b"sore", Sore())]) as host:
        port = host.ports[0]
        if how == "remove":
            host.remove(0)
            await port.ended.wait()
    assert caplog.messages == ["port 'sore': its chardev failed: OSError: no bus"]

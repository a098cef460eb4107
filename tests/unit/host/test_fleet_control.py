"""The control socket of a host end with several guests: tapping the ports of one of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.waiting import until
from vconfs.guest.port import Opener
from vconfs.guest.ports import PortManager
from vconfs.host.fleet import Fleet

from .test_control import Caller, calling, controlled
from .test_fleet import echoed, fleet_at, guest_at

pytestmark = pytest.mark.expect_log("guest [a-z0-9]+ lost: ")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """A host end with the guests web1 and web2, whose control socket is `ctl`."""
    with trio.fail_after(20):
        async with (
            fleet_at(tmp_path, "web1", "web2") as fleet,
            controlled(fleet, tmp_path / "ctl"),
        ):
            yield fleet


@asynccontextmanager
async def guests(folder: Path) -> AsyncIterator[list[PortManager]]:
    url = f"stream:unix:{folder}/any"
    async with guest_at(url, "web1") as web1, guest_at(url, "web2") as web2:
        yield [web1, web2]


async def record(call: Caller) -> dict[str, Any]:
    line = await call.line()
    found: dict[str, Any] = json.loads(line)
    return found


async def test_a_tap_of_one_guest_shows_no_other(fleet: Fleet, tmp_path: Path) -> None:
    async with guests(tmp_path) as (web1, web2), calling(tmp_path / "ctl") as call:
        [port] = await call.ask("tap", ports=["echo"], guest="web2")
        assert (port["guest_name"], port["id"]) == ("web2", 0)
        assert (await record(call))["event"] == "present"
        for guest in (web1, web2):
            guest.ports[0].open(Opener(1))
        assert await echoed(web1.ports[0], b"not this") == b"not this"
        assert await echoed(web2.ports[0], b"but this") == b"but this"
        seen = [await record(call) for _ in range(3)]
        assert [it["event"] for it in seen] == ["open", "in", "out"]
        assert {it.get("data") for it in seen[1:]} == {"YnV0IHRoaXM="}
        assert fleet.guests["web1"].ports[0].tap is None


async def test_a_tap_has_to_name_one_guest_of_several(fleet: Fleet, tmp_path: Path) -> None:
    async with calling(tmp_path / "ctl") as call:
        why = "there are 2 guests: say which one with --guest"
        assert await call.ask("tap", ports=[]) == why
        assert await call.ask("tap", ports=["echo"], guest="web3") == "there is no guest 'web3'"
        await fleet.remove("web1")
        assert len(await call.ask("tap", ports=[])) == 2


async def test_a_client_that_leaves_ends_its_tap(fleet: Fleet, tmp_path: Path) -> None:
    ports = fleet.guests["web1"].ports
    async with calling(tmp_path / "ctl") as call:
        assert len(await call.ask("tap", ports=[], guest="web1")) == 2
        assert all(port.tap is not None for port in ports.values())
    await until(lambda: all(port.tap is None for port in ports.values()))


async def test_a_tap_ends_with_its_guest(fleet: Fleet, tmp_path: Path) -> None:
    async with calling(tmp_path / "ctl") as call:
        await call.ask("tap", ports=[], guest="web1")
        await fleet.remove("web1")
        assert [json.loads(await call.line())["event"] for _ in range(2)] == ["present"] * 2
        assert await call.line() == b""

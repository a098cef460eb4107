"""Guests of one host end do not touch each other: floods, silence, sudden ends."""

from __future__ import annotations

import os
import random
import socket
import statistics
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path

import trio

from tests.support.waiting import until
from vconfs.cli._control_client import ask
from vconfs.protocol.control import GuestList

from .fleets import disturbed, echo, flooding, open_guest
from .programs import Program, open_both


@asynccontextmanager
async def open_fleet_host(folder: Path, *ports: str) -> AsyncIterator[Program]:
    """A host end for any guest, in its own process."""
    async with open_both(folder, f"stream:unix:{folder}/any,guest=*") as both:
        yield await both.host(*ports, words=["--control", f"{folder}/ctl"])


async def bytes_in(folder: Path, name: str) -> int:
    """How much the host end has received from a guest."""
    guests = await trio.to_thread.run_sync(ask, folder / "ctl", GuestList())
    return next(int(guest["bytes_in"]) for guest in guests if guest["name"] == name)


async def test_an_echo_beside_a_flood_takes_less_than_200_ms(tmp_path: Path) -> None:
    async with (
        open_fleet_host(tmp_path, "echo=echo") as host,
        open_guest(f"{tmp_path}/any", "honest") as port,
        flooding(tmp_path, "flood") as flood,
    ):
        times = []
        before = await bytes_in(tmp_path, "flood")
        for _ in range(100):
            began = trio.current_time()
            await echo(port, os.urandom(100))
            times.append(trio.current_time() - began)
            await trio.sleep(0.005)
        flooded = await bytes_in(tmp_path, "flood") - before
        print(f"{flooded >> 20} MiB beside it")
        print(f"median {statistics.median(times) * 1e3:.1f} ms, most {max(times) * 1e3:.1f} ms")
        assert flood.returncode is None
        assert flooded > 10 << 20
        assert statistics.median(times) < 0.2
        assert host.resident() < 200 << 10


async def test_a_guest_is_killed_again_and_again_beside_nine_others(
    tmp_path: Path, numbers: random.Random
) -> None:
    async with open_fleet_host(tmp_path, "echo=echo") as host:
        names = [f"g{number}" for number in range(9)]
        async with disturbed(tmp_path, names, partial(open_guest, f"{tmp_path}/any"), numbers):
            pass
        assert not [line for line in host.lines if "Traceback" in line]
        await until(lambda: host.descriptors() < 60)


async def test_a_thousand_connections_that_say_no_hello(tmp_path: Path) -> None:
    async with (
        open_fleet_host(tmp_path, "echo=echo") as host,
        open_guest(f"{tmp_path}/any", "early") as early,
    ):
        with ExitStack() as stack:

            async def connect_on() -> None:
                for _ in range(1000):
                    silent = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
                    await trio.to_thread.run_sync(silent.connect, f"{tmp_path}/any")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect_on)
                while host.descriptors() < 60:
                    await trio.sleep(0.01)
                async with open_guest(f"{tmp_path}/any", "late") as late:
                    await echo(late, b"late")
                await echo(early, b"early")
            assert host.descriptors() < 100
        await echo(early, b"early again")
        await until(lambda: host.descriptors() < 40)

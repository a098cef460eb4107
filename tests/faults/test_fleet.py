"""Guests of one host end do not touch each other: floods, silence, sudden ends."""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import trio

from tests.support.limits import LONG
from tests.support.waiting import until
from vconfs.cli._control_client import ask
from vconfs.protocol.control import GuestList

from .fleets import echo, open_guest
from .programs import Program, open_both

#: How often a guest is killed.
KILLS = 100 if LONG else 12


@asynccontextmanager
async def open_fleet_host(folder: Path, *ports: str) -> AsyncIterator[Program]:
    """A host end for any guest, in its own process."""
    async with open_both(folder, f"stream:unix:{folder}/any,guest=*") as both:
        yield await both.host(*ports, words=["--control", f"{folder}/ctl"])


async def bytes_in(folder: Path, name: str) -> int:
    """How much the host end has received from a guest."""
    guests = await trio.to_thread.run_sync(ask, folder / "ctl", GuestList())
    return next(int(guest["bytes_in"]) for guest in guests if guest["name"] == name)


@asynccontextmanager
async def flooding(folder: Path, name: str) -> AsyncIterator[trio.Process]:
    command = [sys.executable, "-m", "tests.faults.fleets", "flood", f"{folder}/any", name]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                command, stdout=subprocess.PIPE, check=False, task_status=task_status
            )
        )
        assert process.stdout is not None
        assert (await process.stdout.receive_some()).startswith(b"flooding")
        try:
            yield process
        finally:
            process.kill()


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
        checked = dict.fromkeys((f"g{number}" for number in range(9)), 0)
        connected = trio.Event()

        async def converse(name: str) -> None:
            async with open_guest(f"{tmp_path}/any", name) as port:
                while True:
                    data = random.randbytes(numbers.randrange(1, 30_000))
                    await echo(port, data)
                    checked[name] += 1
                    if all(checked.values()):
                        connected.set()

        async with trio.open_nursery() as nursery:
            for name in checked:
                nursery.start_soon(converse, name)
            await connected.wait()
            for _ in range(KILLS):
                before = dict(checked)
                async with flooding(tmp_path, "victim") as victim:
                    await trio.sleep(numbers.uniform(0, 0.1))
                    victim.kill()
                await until(lambda: all(checked[name] > before[name] for name in checked))  # noqa: B023
            nursery.cancel_scope.cancel()
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

"""QEMU's consoles as files: what programs see of a real device."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.qemu.changes import Changes, pattern, receive_exactly
from tests.qemu.machine import Machine, open_machine, port
from tests.support.threads import in_thread
from tests.support.waiting import until
from vconfs.device.qtest.machine import open_qtest
from vconfs.guest.driver import drive
from vconfs.guest.ports import PortManager
from vconfs.mounting import Plan, open_mount

NAME = "org.libvirt.channel.0"


@asynccontextmanager
async def mounted_machine(folder: Path) -> AsyncIterator[tuple[Machine, Changes, Path]]:
    """Mount one machine's ports, once the one with a name is there and has a host."""
    mountpoint = folder / "mnt"
    mountpoint.mkdir(parents=True)
    manager = PortManager()
    changes = Changes(manager)
    async with (
        open_machine(folder, port(folder, 1, NAME)) as qemu,
        drive(manager, open_qtest(str(folder))),
        open_mount(Plan(mountpoint), manager),
    ):
        with trio.fail_after(15):
            await changes.named(1, NAME)
            yield qemu, changes, mountpoint


async def run(command: str, folder: Path) -> str:
    done = await trio.run_process(["sh", "-c", command], cwd=folder, capture_stdout=True)
    return done.stdout.decode()


async def test_shell_and_names(tmp_path: Path) -> None:
    async with mounted_machine(tmp_path) as (qemu, changes, mountpoint):
        assert await run(f"readlink by-name/{NAME}", mountpoint) == "../vcon1\n"
        assert await run("getfattr --only-values -n user.name vcon1", mountpoint) == NAME
        async with await qemu.connect("c1") as host:
            await changes.connected(changes.ports[1])
            await run(f"echo hello >by-name/{NAME}", mountpoint)
            assert await receive_exactly(host, 6) == b"hello\n"
            await host.send_all(b"from the host\n")
            assert await run("head -n 1 vcon1", mountpoint) == "from the host\n"


async def test_a_host_that_does_not_read(tmp_path: Path) -> None:
    async with mounted_machine(tmp_path) as (qemu, changes, mountpoint):
        async with await qemu.connect("c1") as host:
            await changes.connected(changes.ports[1])
            path = mountpoint / "vcon1"
            fd = await in_thread(lambda: os.open(path, os.O_RDWR | os.O_NONBLOCK))
            data = pattern(1 << 24)
            sent = await in_thread(lambda: fill(fd, data))
            assert 0 < sent < len(data)
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            assert await in_thread(lambda: poll.poll(0)) == []
            async with trio.open_nursery() as nursery:
                ready: list[tuple[int, int]] = []

                async def wait() -> None:
                    ready.extend(await in_thread(lambda: poll.poll(10_000)))

                nursery.start_soon(wait)
                assert await receive_exactly(host, sent) == data[:sent]
            assert ready == [(fd, select.POLLOUT)]
            await in_thread(lambda: os.close(fd))


def fill(fd: int, data: bytes) -> int:
    """Write until nothing more is taken."""
    sent = 0
    while sent < len(data):
        try:
            sent += os.write(fd, data[sent : sent + (1 << 17)])
        except OSError as error:
            assert error.errno == errno.EAGAIN
            break
    return sent


@pytest.mark.expect_log("device lost")
async def test_qemu_is_killed_under_a_reader(tmp_path: Path) -> None:
    async with mounted_machine(tmp_path) as (qemu, changes, mountpoint):
        async with await qemu.connect("c1") as host:
            await changes.connected(changes.ports[1])
            fd = await in_thread(lambda: os.open(mountpoint / "vcon1", os.O_RDWR))
            await host.send_all(b"last")
            assert await in_thread(lambda: os.read(fd, 100)) == b"last"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_to_the_end, fd)
                await until(changes.ports[1]._inbox.turn.locked)
                qemu.process.kill()
            poll = select.poll()
            poll.register(fd, 0)
            assert await in_thread(lambda: poll.poll(0)) == [(fd, select.POLLHUP)]
            await in_thread(lambda: os.close(fd))
        assert "vcon1" in await run("ls", mountpoint)


async def read_to_the_end(fd: int) -> None:
    assert await in_thread(lambda: os.read(fd, 100)) == b""


async def test_two_machines_in_two_mounts(tmp_path: Path) -> None:
    async with (
        mounted_machine(tmp_path / "1") as (one, changes_one, path_one),
        mounted_machine(tmp_path / "2") as (two, changes_two, path_two),
        await one.connect("c1") as host_one,
        await two.connect("c1") as host_two,
    ):
        await changes_one.connected(changes_one.ports[1])
        await changes_two.connected(changes_two.ports[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "head -c 2000000 /dev/zero | tr '\\0' 1 >vcon1", path_one)
            nursery.start_soon(run, "head -c 2000000 /dev/zero | tr '\\0' 2 >vcon1", path_two)
            assert await receive_exactly(host_one, 2_000_000) == b"1" * 2_000_000
            assert await receive_exactly(host_two, 2_000_000) == b"2" * 2_000_000

"""QEMU dies under a mount of its own program, at any moment: it ends or it waits, as asked."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.faults.programs import Both, open_both
from tests.qemu.changes import pattern, receive_exactly
from tests.qemu.machine import chardev, open_machine, port
from tests.support.threads import in_thread
from tests.support.waiting import until
from vconfs.device.qtest._qtest_client import QtestClient
from vconfs.device.qtest.machine import open_qtest
from vconfs.errors import VconfsError
from vconfs.guest.driver import drive
from vconfs.guest.ports import PortManager

#: Seconds that a test has; what it has started ends in order then.
LIMIT = 30
NAME = "org.libvirt.channel.0"
PIECE = pattern(251)[:251]


@asynccontextmanager
async def programs(folder: Path) -> AsyncIterator[Both]:
    """Yield a starter of `vconfs mount` on the machine in this folder."""
    with trio.fail_after(LIMIT):
        async with open_both(folder, f"qtest:{folder}") as starter:
            yield starter


async def send_for_ever(host: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while True:
            await host.send_all(PIECE * 100)


async def write(fd: int, data: bytes) -> None:
    assert await in_thread(lambda: os.write(fd, data)) == len(data)


async def read_up_to(fd: int, size: int) -> bytes:
    """Read at least `size` bytes."""
    data = b""
    while len(data) < size:
        piece = await in_thread(lambda: os.read(fd, 1 << 16))
        assert piece
        data += piece
    return data


async def read_to_the_end(fd: int) -> bytes:
    data = b""
    while piece := await in_thread(lambda: os.read(fd, 1 << 16)):
        data += piece
    return data


def in_order(data: bytes) -> bool:
    return data == (PIECE * (len(data) // 251 + 1))[: len(data)]


@pytest.mark.parametrize("moment", [0, 1, 1 << 16, 1 << 21])
async def test_once_the_mount_ends_with_its_device(tmp_path: Path, moment: int) -> None:
    async with programs(tmp_path) as both, open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu:
        mount = await both.mount("--once")
        async with await qemu.connect("c1") as host, trio.open_nursery() as nursery:
            await both.until_connected(1)
            fd = await in_thread(lambda: os.open(both.file(1), os.O_RDWR))
            nursery.start_soon(send_for_ever, host)
            data = await read_up_to(fd, moment)
            qemu.process.kill()
            data += await read_to_the_end(fd)
            assert in_order(data)
            os.close(fd)
            await mount.process.wait()
            nursery.cancel_scope.cancel()
        assert mount.process.returncode == 1
        assert mount.lines[-1].startswith(f"vconfs: qtest:{tmp_path}: QEMU is gone")
        assert not both.mountpoint.is_mount()


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_mount_waits_for_the_next_machine(tmp_path: Path, seed: int) -> None:
    """The same descriptor serves one machine after the other, each killed in mid-stream."""
    chance = random.Random(seed)
    async with programs(tmp_path) as both:
        fd = -1
        for _ in range(4):
            async with open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu:
                if fd < 0:
                    mount = await both.mount()
                    fd = await in_thread(lambda: os.open(both.file(1), os.O_RDWR))
                async with await qemu.connect("c1") as host, trio.open_nursery() as nursery:
                    await both.until_connected(1)
                    await write(fd, b"hello")
                    assert await receive_exactly(host, 5) == b"hello"
                    nursery.start_soon(send_for_ever, host)
                    data = await read_up_to(fd, chance.choice([0, 1, 5000, 1 << 17, 1 << 20]))
                    qemu.process.kill()
                    assert in_order(data + await read_to_the_end(fd))
                    nursery.cancel_scope.cancel()
            await until(lambda: both.attribute("host", 1) == b"0")
        assert mount.process.returncode is None
        os.close(fd)


@pytest.mark.parametrize("call", [1, 2, 70, 90, 110, 130])
async def test_the_machine_is_killed_while_its_device_is_set_up(
    tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_machine(tmp_path, port(tmp_path, 1, NAME)) as qemu:
        answered, ask = 0, QtestClient.call

        async def call_or_kill(self: QtestClient, command: bytes) -> int:
            nonlocal answered
            answered += 1
            if answered == call:
                qemu.process.kill()
            return await ask(self, command)

        monkeypatch.setattr(QtestClient, "call", call_or_kill)
        with trio.fail_after(LIMIT):
            reason = await why_lost(tmp_path)
        assert "QEMU is gone" in reason
        assert answered >= call


async def why_lost(folder: Path) -> str:
    try:
        async with drive(PortManager(), open_qtest(str(folder))) as driver:
            await driver.stopped.wait()
            return driver.reason
    except VconfsError as error:
        return str(error)


async def test_output_of_a_console_meanwhile_is_not_lost(tmp_path: Path) -> None:
    """No reader is needed: QEMU's end of the console is a file."""
    output = tmp_path / "output"
    console = [
        "-chardev",
        f"file,id=c0,path={output}",
        "-device",
        "virtconsole,chardev=c0,name=con",
    ]
    console += [*chardev(tmp_path, "c1"), "-device", f"virtserialport,chardev=c1,name={NAME},nr=1"]
    async with programs(tmp_path) as both:
        async with open_machine(tmp_path, console):
            await both.mount()
            await both.until_connected()
            link = both.mountpoint / "hvc0"
            await until(lambda: os.path.lexists(link))  # the device says later that it is a console
            terminal = await in_thread(lambda: os.open(link, os.O_RDWR))
            os.write(terminal, b"before, ")
            await until(lambda: output.read_bytes() == b"before, ")
        await until(lambda: both.attribute("host") == b"0")
        os.write(terminal, b"meanwhile, ")
        async with open_machine(tmp_path, console):
            await both.until_connected()
            os.write(terminal, b"after")
            await until(lambda: output.read_bytes().endswith(b"after"))
            assert output.read_bytes() == b"meanwhile, after"
        os.close(terminal)

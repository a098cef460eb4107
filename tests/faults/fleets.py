"""Guests of a host end with several: honest ones in this process, and one that floods, in another.

`python -m tests.faults.fleets flood PATH NAME` is the one that floods: it sends data to port 0
without a pause, as much as the window allows, whatever it is asked to do by THROTTLE.
"""

from __future__ import annotations

import random
import select
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from tests.support.limits import LONG
from tests.support.waiting import until
from vconfs.guest.connection import Connection
from vconfs.guest.devices import parse_device
from vconfs.guest.port import Opener, Port
from vconfs.guest.ports import PortManager
from vconfs.protocol import stream, v8
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.system.tasks import open_background

_PIECE: Final = 64 << 10
#: How often a guest is killed.
KILLS: Final = 100 if LONG else 12


@asynccontextmanager
async def open_guest(path: str, name: str) -> AsyncIterator[Port]:
    """Connect as this guest, and open port 0."""
    manager = PortManager()
    async with open_background() as nursery:
        connection = Connection(parse_device(f"stream:unix:{path}", name=name), manager)
        await nursery.start(connection.run)
        port = manager.ports[0]
        port.open(Opener(1))
        while not port.host_connected:
            await trio.sleep(0.005)
        yield port


async def echo(port: Port, data: bytes) -> None:
    """Send data to an echo, and check all that comes back."""
    came = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.write, data)
        while len(came) < len(data):
            for piece in await port.read(len(data) - len(came)):
                came += piece
    assert came == data


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


@asynccontextmanager
async def disturbed(
    folder: Path,
    names: Sequence[str],
    echoing: Callable[[str], AbstractAsyncContextManager[Port]],
    numbers: random.Random,
    settled: Callable[[], bool] = lambda: True,
) -> AsyncIterator[None]:
    """Let guests with these names talk to an echo, and kill a flooding one, `victim`, KILLS times.

    After each time, all of them go on, and `settled` comes true. They still do in the block.
    """
    checked = dict.fromkeys(names, 0)

    async def converse(name: str) -> None:
        async with echoing(name) as port:
            while True:
                await echo(port, numbers.randbytes(numbers.randrange(1, 30_000)))
                checked[name] += 1

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(converse, name)
        await until(lambda: all(checked.values()))
        for _ in range(KILLS):
            before = dict(checked)
            async with flooding(folder, "victim") as victim:
                await trio.sleep(numbers.uniform(0, 0.1))
                victim.kill()
            await until(lambda: all(checked[name] > before[name] for name in checked))  # noqa: B023
            await until(settled)
        yield
        nursery.cancel_scope.cancel()


def _flood(path: str, name: str) -> None:
    data = v8.HEADER.pack(0, 0, _PIECE) + bytes(_PIECE)
    opened = v8.HEADER.pack(0, v8.INTERNAL, v8.CONTROL.size) + v8.CONTROL.pack(0, 1)
    named = v8.HEADER.pack(0, v8.INTERNAL, v8.CONTROL.size) + v8.CONTROL.pack(1, 0)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        guest = stream.Connection(stream.Role.GUEST)
        sock.sendall(guest.hello(v8.FEATURES | stream.NAMES))
        _hear(sock, guest, stream.Hello)
        sock.sendall(guest.answer() + guest.name(name))
        _hear(sock, guest, stream.ConfigChanged)
        print("flooding", flush=True)
        for message in (named, opened):
            sock.sendall(guest.frame_header(stream.OUTPUT, len(message)) + message)
        while True:
            sock.sendall(guest.frame_header(stream.OUTPUT, len(data)) + data)
            while select.select([sock], [], [], 0)[0] or guest.room < len(data):
                if not (came := sock.recv(1 << 20)):
                    return
                guest.feed(came)
                while guest.next_event() is not None:
                    pass


def _hear(sock: socket.socket, guest: stream.Connection, kind: type) -> None:
    while not isinstance(event := guest.next_event(), kind):
        if event is None:
            guest.feed(sock.recv(1 << 16))
            continue
        if isinstance(event, stream.Closed):
            raise RemoteProtocolError(event.reason)


if __name__ == "__main__":
    _flood(*sys.argv[2:])

"""A conversation of both ends of a stream, in which they say everything that they can say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
from attrs import frozen

from tests.support.waiting import until
from vconfs.device.stream import open_stream
from vconfs.guest.driver import drive
from vconfs.guest.port import Opener
from vconfs.guest.ports import PortManager
from vconfs.host._stream_guests import serve_stream
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPortSpec
from vconfs.system.tasks import open_background
from vconfs.testing import Puppet

#: What each end says on each port.
UP = {0: b"from the guest, on port 0", 1: b"\xff\0" * 20, 2: b"x" * 600}
DOWN = {0: b"from the host, on port 0", 1: b"\0\xff" * 20, 2: b"y" * 600}


@frozen
class Talk:
    """What both ends sent in a conversation."""

    up: bytearray
    down: bytearray


class Listener(Puppet):
    """A chardev that keeps what came."""

    def __init__(self) -> None:
        super().__init__()
        self.came = b""

    def listen(self) -> None:
        def sink(data: memoryview) -> int:
            self.came += data
            return len(data)

        self.port.sink = sink


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[tuple[Host, list[Listener]]]:
    puppets = [Listener() for _ in UP]
    specs = [HostPortSpec(b"port%d" % port_id, puppet) for port_id, puppet in enumerate(puppets)]
    async with open_host(specs) as host, open_background() as nursery:
        for puppet in puppets:
            puppet.listen()
        await nursery.start(serve_stream, host, url, None)
        yield host, puppets


@asynccontextmanager
async def relay(front: Path, back: Path) -> AsyncIterator[Talk]:
    """Carry one connection on, and note what it says."""
    talk = Talk(bytearray(), bytearray())

    async def copy(source: trio.SocketStream, sink: trio.SocketStream, said: bytearray) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in source:
                said += data
                await sink.send_all(data)
            await sink.send_eof()

    async def carry() -> None:
        sock, _ = await listener.accept()
        async with trio.SocketStream(sock) as guest, await trio.open_unix_socket(back) as host:
            async with trio.open_nursery() as both:
                both.start_soon(copy, guest, host, talk.up)
                both.start_soon(copy, host, guest, talk.down)

    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(front))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            yield talk


async def converse(folder: Path, options: str) -> Talk:
    """Have both ends say everything that they can say to each other."""
    back, front = folder / "back", folder / "front"
    manager = PortManager()
    async with (
        serving(f"unix:{back}{options}") as (host, puppets),
        relay(front, back) as talk,
        drive(manager, open_stream(f"unix:{front}{options}")),
    ):
        await until(lambda: len([p for p in manager.ports.values() if p.host_connected]) == len(UP))
        openers = {port_id: Opener(1) for port_id in UP}
        for port_id, data in UP.items():
            manager.ports[port_id].open(openers[port_id])
            while data:
                data = data[await manager.ports[port_id].write(data) :]
            await puppets[port_id].port.send(DOWN[port_id])
        await until(lambda: [puppet.came for puppet in puppets] == list(UP.values()))
        await until(lambda: all(manager.ports[port_id].queued for port_id in UP))
        host.rename(1, b"renamed")
        host.configure(1, cache=True, limit=2)
        await host.add(HostPortSpec(b"added", Puppet(), console=True))
        host.resize(3, 80, 25)
        await until(lambda: 3 in manager.ports and manager.ports[3].size == (80, 25))
        host.remove(3)
        puppets[2].port.disconnect()
        await until(lambda: 3 not in manager.ports and not manager.ports[2].host_connected)
        for port_id in UP:
            manager.ports[port_id].close(openers[port_id])
        await until(lambda: not host.ports[2].guest_connected)
    return talk


async def assert_served(url: str, puppets: list[Listener]) -> None:
    manager = PortManager()
    async with drive(manager, open_stream(url)):
        await until(lambda: len([p for p in manager.ports.values() if p.host_connected]) == len(UP))
        for port_id, puppet in enumerate(puppets):
            puppet.came = b""
            await manager.ports[port_id].write(b"still there")
        await until(lambda: {puppet.came for puppet in puppets} == {b"still there"})

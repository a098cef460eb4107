"""Ports that come, go and change at random: the guest ends with those that the host has."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from vconfs.device.embedded import open_embedded
from vconfs.device.stream import open_stream
from vconfs.guest.driver import drive
from vconfs.guest.port import Opener, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.host import Host, open_host, parse_port
from vconfs.host.stream_guests import serve_stream
from vconfs.system.tasks import open_background

OpenLink = Callable[[Host, PortManager, Path], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def _stream(host: Host, manager: PortManager, folder: Path) -> AsyncIterator[None]:
    async with open_background() as nursery:
        await nursery.start(serve_stream, host, f"unix:{folder}/device", None)
        async with drive(manager, open_stream(f"unix:{folder}/device")):
            yield


LINKS: dict[str, OpenLink] = {
    "v8": lambda host, manager, folder: drive(manager, open_embedded(host, "v8")),
    "virtio1": lambda host, manager, folder: drive(manager, open_embedded(host, "virtio1")),
    "stream": _stream,
}


class Storm:
    """What a host end and a guest's programs may do at any moment."""

    def __init__(self, host: Host, manager: PortManager, seed: int) -> None:
        self.host = host
        self.manager = manager
        self.random = random.Random(seed)
        self.openers: list[tuple[int, Opener]] = []

    async def step(self) -> None:
        """Do one thing."""
        acts = (self.add, self.remove, self.rename, self.throttle, self.disconnect)
        await self.random.choice((*acts, self.open, self.close, self.write, self.pause))()

    def some_port(self) -> int | None:
        ids = sorted(self.host.ports)
        return self.random.choice(ids) if ids else None

    async def add(self) -> None:
        free = [id for id in range(20) if id not in self.host.ports]
        if free:
            id, kind = self.random.choice(free), self.random.choice(("echo", "exec:cat", "null"))
            await self.host.add(parse_port(f"name{id}={kind},id={id}"))

    async def remove(self) -> None:
        if (id := self.some_port()) is not None:
            self.host.remove(id)

    async def rename(self) -> None:
        if (id := self.some_port()) is not None:
            self.host.rename(id, b"name%d" % self.random.randrange(1000))

    async def throttle(self) -> None:
        if (id := self.some_port()) is not None:
            self.host.throttle(id, self.random.random() < 0.5)

    async def disconnect(self) -> None:
        if (id := self.some_port()) is not None and self.host.ports[id].hang_up_client:
            self.host.disconnect(id)

    async def open(self) -> None:
        if self.manager.ports:
            port = self.manager.ports[self.random.choice(sorted(self.manager.ports))]
            opener = Opener(1)
            port.open(opener)
            self.openers.append((port.id, opener))

    async def close(self) -> None:
        if self.openers:
            id, opener = self.openers.pop(self.random.randrange(len(self.openers)))
            if (port := self.manager.ports.get(id)) and opener in port.openers:
                port.close(opener)

    async def write(self) -> None:
        if self.manager.ports:
            port = self.manager.ports[self.random.choice(sorted(self.manager.ports))]
            with suppress(OSError, trio.WouldBlock):
                port.write_nowait(bytes(self.random.randrange(1, 100_000)))

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("seed", range(3))
async def test_the_guest_ends_with_the_ports_of_the_host(
    link: str, seed: int, tmp_path: Path
) -> None:
    manager = PortManager(lambda id: PortOptions())
    async with open_host() as host, LINKS[link](host, manager, tmp_path):
        storm = Storm(host, manager, seed)
        for _ in range(300):
            await storm.step()
        for id in range(20):
            if id not in host.ports:
                await host.add(parse_port(f"last{id}=echo,id={id}"))
            host.throttle(id, False)
        with trio.fail_after(10):
            while {id: port.name for id, port in manager.ports.items()} != {
                id: port.name for id, port in host.ports.items()
            }:
                await trio.sleep(0.01)
            for id in range(20):
                await echoed(storm, id)
        # Messages that cross a removal break no rule.
        assert host.guest is not None
        assert (manager.ignored, host.guest.ignored) == (0, 0)


async def echoed(storm: Storm, id: int) -> None:
    """A new echo on a port that has seen much: what is written comes back, and nothing else."""
    before = storm.manager.ports[id]
    storm.host.remove(id)
    await storm.host.add(parse_port(f"echo{id}=echo,id={id}"))
    while (port := storm.manager.ports.get(id)) in (None, before) or not port.host_connected:
        await trio.sleep(0.01)
    port.open(Opener(1))
    said = b"port %d" % id
    port.write_nowait(said)
    assert b"".join(map(bytes, await port.read(100))) == said

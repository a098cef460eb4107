"""Ports that come, go and change at random: the guest ends with those that the host has."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.support.waiting import until
from vconfs.device.embedded import open_embedded
from vconfs.device.stream import open_stream
from vconfs.guest.driver import drive
from vconfs.guest.port import Opener, Port, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.host import Host, open_host, parse_port
from vconfs.host._stream_guests import serve_stream
from vconfs.host.port import HostPort
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
    """Actions of a host end and of a guest's programs, at any moment."""

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
        free = [port_id for port_id in range(20) if port_id not in self.host.ports]
        if free:
            port_id, kind = (
                self.random.choice(free),
                self.random.choice(("echo", "exec:cat", "null")),
            )
            await self.host.add(parse_port(f"name{port_id}={kind},id={port_id}"))

    async def remove(self) -> None:
        if (port_id := self.some_port()) is not None:
            self.host.remove(port_id)

    async def rename(self) -> None:
        if (port_id := self.some_port()) is not None:
            self.host.rename(port_id, b"name%d" % self.random.randrange(1000))

    async def throttle(self) -> None:
        if (port_id := self.some_port()) is not None:
            self.host.throttle(port_id, self.random.random() < 0.5)

    async def disconnect(self) -> None:
        if (port_id := self.some_port()) is not None and self.host.ports[port_id].hang_up_client:
            self.host.disconnect(port_id)

    async def open(self) -> None:
        if self.manager.ports:
            port = self.manager.ports[self.random.choice(sorted(self.manager.ports))]
            opener = Opener(1)
            port.open(opener)
            self.openers.append((port.id, opener))

    async def close(self) -> None:
        if self.openers:
            port_id, opener = self.openers.pop(self.random.randrange(len(self.openers)))
            if (port := self.manager.ports.get(port_id)) and opener in port.openers:
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
@pytest.mark.expect_log("guest lost", "have the same name", "ended with exit code 141")
async def test_the_guest_ends_with_the_ports_of_the_host(
    link: str, seed: int, tmp_path: Path
) -> None:
    manager = PortManager(lambda port_id: PortOptions())
    async with open_host() as host, LINKS[link](host, manager, tmp_path):
        storm = Storm(host, manager, seed)
        for _ in range(300):
            await storm.step()
        for port_id in range(20):
            if port_id not in host.ports:
                await host.add(parse_port(f"last{port_id}=echo,id={port_id}"))
            host.throttle(port_id, False)
        with trio.fail_after(10):
            await until(lambda: names(manager.ports) == names(host.ports))
            for port_id in range(20):
                await echoed(storm, port_id)
        # Messages that cross a removal break no rule.
        assert host.guest is not None
        assert manager.ignored == 0


def names(ports: Mapping[int, Port] | Mapping[int, HostPort]) -> dict[int, bytes]:
    return {port_id: port.name for port_id, port in ports.items()}


async def echoed(storm: Storm, port_id: int) -> None:
    """A new echo on a port that has seen much: what is written comes back, and nothing else."""
    before = storm.manager.ports[port_id]
    storm.host.remove(port_id)
    await storm.host.add(parse_port(f"echo{port_id}=echo,id={port_id}"))
    ports = storm.manager.ports
    await until(lambda: ports.get(port_id, before) is not before and ports[port_id].host_connected)
    port = ports[port_id]
    port.open(Opener(1))
    said = b"port %d" % port_id
    port.write_nowait(said)
    assert b"".join(map(bytes, await port.read(100))) == said

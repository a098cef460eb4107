"""Shared code of tests of a real device: waiting for the ports, and moving bytes."""

from __future__ import annotations

from collections.abc import Callable

import trio

from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager


class Changes:
    """Waits until something holds, looking again after each change of a port."""

    def __init__(self, manager: PortManager) -> None:
        self.ports = manager.ports
        self._changed = trio.Event()
        manager.observers.append(self)

    def port_added(self, port: Port) -> None:
        self._changed.set()

    def port_removed(self, port: Port) -> None:
        self._changed.set()

    def port_renamed(self, port: Port, old: bytes) -> None:
        self._changed.set()

    def port_changed(self, port: Port) -> None:
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not holds():
                self._changed = trio.Event()
                await self._changed.wait()

    async def named(self, port_id: int, name: str) -> Port:
        await self.until(
            lambda: port_id in self.ports and self.ports[port_id].name == name.encode()
        )
        return self.ports[port_id]

    async def connected(self, port: Port, connected: bool = True) -> None:
        await self.until(lambda: port.host_connected == connected)


async def receive_exactly(stream: trio.SocketStream, size: int, seconds: float = 10) -> bytes:
    data = bytearray()
    with trio.fail_after(seconds):
        while len(data) < size:
            piece = await stream.receive_some()
            assert piece, f"end of stream after {len(data)} bytes"
            data += piece
    return bytes(data)


async def read_exactly(port: Port, size: int, seconds: float = 10) -> bytes:
    data = bytearray()
    with trio.fail_after(seconds):
        while len(data) < size:
            pieces = await port.read(size - len(data))
            assert pieces, f"end of file after {len(data)} bytes"
            data += b"".join(pieces)
    return bytes(data)


def pattern(size: int) -> bytes:
    return bytes(i * 31 % 251 for i in range(251)) * (size // 251 + 1)


async def write_all(port: Port, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await port.write(view) :]

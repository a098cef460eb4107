"""Plays guests of a host end: `python -m benchmarks._guests KIND PLACE FIRST COUNT`.

It connects guests gFIRST and so on, and prints "connected". Then it obeys lines of its input, and
prints a line for each: `echo N` makes N echoes with the first guest and prints the seconds that
each took; `flood` makes all guests send without a pause from then on; `sent` prints how many
bytes they have sent since. It ends with its input.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import trio

from vconfs.guest.connection import Connection
from vconfs.guest.devices import parse_device
from vconfs.guest.port import Opener, Port
from vconfs.guest.ports import PortManager
from vconfs.system.descriptors import allow_all_descriptors
from vconfs.system.tasks import open_background

_PIECE: Final = bytes(64 << 10)
ECHO, NULL = range(2)


def url(kind: str, place: Path, number: int) -> str:
    """Return the DEVICE url of a guest."""
    return f"{kind}:{place}/" + ("any" if kind == "stream:unix" else f"g{number}.sock")


class Guests:
    """The guests of this process, all connected."""

    def __init__(self) -> None:
        self.managers: list[PortManager] = []
        self.sent = 0

    async def connect(self, kind: str, place: Path, number: int, nursery: trio.Nursery) -> None:
        manager = PortManager()
        name = f"g{number}" if kind == "stream:unix" else None
        device = parse_device(url(kind, place, number), name=name)
        await nursery.start(Connection(device, manager).run)
        while not {ECHO, NULL} <= set(manager.ports):  # noqa: ASYNC110
            await trio.sleep(0.01)
        for port_id in (ECHO, NULL):
            port = manager.ports[port_id]
            port.open(Opener(1))
            while not port.host_connected:  # noqa: ASYNC110
                await trio.sleep(0.01)
        self.managers.append(manager)

    async def echo(self, count: int) -> list[float]:
        port, seconds = self.managers[0].ports[ECHO], []
        for _ in range(count):
            begun = trio.current_time()
            await _echo(port)
            seconds.append(trio.current_time() - begun)
            await trio.sleep(0.002)
        return seconds

    async def flood(self, manager: PortManager) -> None:
        while True:
            size = await manager.ports[NULL].write(_PIECE)
            self.sent += size
            await trio.lowlevel.checkpoint()


async def _echo(port: Port) -> None:
    await port.write(b"ping")
    size = 0
    while size < 4:
        size += sum(map(len, await port.read(4)))


async def play(kind: str, place: Path, first: int, count: int) -> None:
    allow_all_descriptors()
    guests = Guests()
    async with open_background() as nursery:
        async with trio.open_nursery() as connecting:
            for number in range(first, first + count):
                connecting.start_soon(guests.connect, kind, place, number, nursery)
        print("connected", flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            match line.split():
                case ["echo", number]:
                    print(*await guests.echo(int(number)), flush=True)
                case ["flood"]:
                    for manager in guests.managers:
                        nursery.start_soon(guests.flood, manager)
                    print("flooding", flush=True)
                case ["sent"]:
                    print(guests.sent, flush=True)


if __name__ == "__main__":
    trio.run(play, sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))

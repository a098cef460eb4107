"""Either end is killed at random moments, again and again, while 8 ports carry checked data."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from attrs import field, frozen

from tests.support.limits import LONG
from tests.support.threads import in_thread
from tests.support.waiting import until
from vconfs.system.tasks import open_background

from .conftest import LIMIT
from .programs import Both, Program
from .traffic import Track

PORTS = 8
#: How often each end is killed: all 200 of the issue, half of them each, with `VCONFS_LONG=1`.
KILLS = 100 if LONG else 4
#: After this many kills an end has the memory that it keeps: nothing new happens to it.
WARM = KILLS // 2
#: What it may hold more then, in KiB: the queues of its ports may be fuller, a MiB each way.
SLACK = PORTS << 11
PIECES = (1, 100, 4096, 65_536, 200_000)


@frozen
class Traffic:
    """Data on all ports, both ways."""

    both: Both
    numbers: random.Random
    up: list[Track] = field(factory=lambda: [Track(port, True) for port in range(PORTS)])
    down: list[Track] = field(factory=lambda: [Track(port, False) for port in range(PORTS)])

    @property
    def ports(self) -> list[str]:
        return [f"port{port_id}=unix:{self.both.folder}/{port_id}" for port_id in range(PORTS)]

    @property
    def received(self) -> int:
        return sum(track.received for track in self.up + self.down)

    # --- the host's side ------------------------------------------------------------------

    async def use_sockets(self) -> None:
        """Use the host's sockets until the host is gone."""
        async with trio.open_nursery() as nursery:
            for port_id in range(PORTS):
                nursery.start_soon(self._use_socket, port_id)

    async def _use_socket(self, port_id: int) -> None:
        with suppress(OSError):
            async with await trio.open_unix_socket(f"{self.both.folder}/{port_id}") as client:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, client, self.down[port_id])
                    await self._receive(client, self.up[port_id])
                    nursery.cancel_scope.cancel()

    async def _receive(self, client: trio.SocketStream, track: Track) -> None:
        track.resume()
        with suppress(trio.BrokenResourceError):
            while data := await client.receive_some(1 << 16):
                track.take(data)

    async def _send(self, client: trio.SocketStream, track: Track) -> None:
        with suppress(trio.BrokenResourceError):
            await client.send_all(track.begin())
            while True:
                await client.send_all(track.more(self.numbers.choice(PIECES)))

    # --- the guest's side -----------------------------------------------------------------

    async def use_files(self) -> None:
        """Use the guest's files until the mount is gone."""
        async with trio.open_nursery() as nursery:
            for port_id in range(PORTS):
                nursery.start_soon(self._use_file, port_id)

    async def _use_file(self, port_id: int) -> None:
        with suppress(OSError):
            fd = await in_thread(lambda: os.open(self.both.file(port_id), os.O_RDWR))
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, fd, self.up[port_id])
                    nursery.start_soon(self._read, fd, self.down[port_id])
            finally:
                os.close(fd)

    async def _write(self, fd: int, track: Track) -> None:
        data = track.begin()
        with suppress(OSError):
            while True:
                while data:
                    data = data[await in_thread(lambda data=data: os.write(fd, data)) :]  # type: ignore[misc]
                data = track.more(self.numbers.choice(PIECES))

    async def _read(self, fd: int, track: Track) -> None:
        track.resume()
        with suppress(OSError):
            while True:
                track.take(await in_thread(lambda: os.read(fd, 1 << 16)))

    # --- moments --------------------------------------------------------------------------

    async def random_moment(self) -> None:
        """Wait for a moment: soon, be the ends there or not, or when some data has come."""
        numbers = self.numbers
        if numbers.random() < 0.25:
            await trio.sleep(numbers.uniform(0, 0.5))
        else:
            goal = self.received + int(2 ** numbers.uniform(0, 22))
            await until(lambda: self.received >= goal)

    async def all_get_through(self) -> None:
        """Wait until each port has carried data both ways."""
        tracks = self.up + self.down
        goals = [track.received + (1 << 18) for track in tracks]
        await until(lambda: all(t.received >= goal for t, goal in zip(tracks, goals, strict=True)))


@frozen
class Holdings:
    """What a program holds of the machine."""

    descriptors: int
    resident: int

    @classmethod
    def of(cls, program: Program) -> Holdings:
        return cls(program.descriptors(), program.resident())


async def assert_as_before(program: Program, before: Holdings) -> None:
    """Check that a program holds what it held before."""
    with trio.move_on_after(10):
        await until(lambda: program.descriptors() <= before.descriptors)
    now = Holdings.of(program)
    print(f"before: {before}, now: {now}")
    assert now.descriptors <= before.descriptors
    assert now.resident <= before.resident + SLACK


async def survive(
    traffic: Traffic,
    survivor: Program,
    begin: Callable[[], Awaitable[Program]],
    use: Callable[[Program], Awaitable[None]],
) -> None:
    """Start, use and kill the other end, and see that the survivor does not mind."""
    before = Holdings.of(survivor)
    for number in range(KILLS):
        victim = await begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, victim)
            await traffic.random_moment()
            await victim.kill()
            nursery.cancel_scope.deadline = trio.current_time() + 10
        assert not nursery.cancel_scope.cancelled_caught, "a task still waits for a killed end"
        if number == WARM:
            before = Holdings.of(survivor)
    await assert_as_before(survivor, before)
    victim = await begin()
    async with open_background() as nursery:
        nursery.start_soon(use, victim)
        await traffic.all_get_through()
    assert survivor.process.returncode is None
    assert "Traceback" not in survivor.said.decode()


@pytest.mark.limit(LIMIT + 10)
async def test_the_guest_is_killed(both: Both, numbers: random.Random) -> None:
    traffic = Traffic(both, numbers)

    async def use(mount: Program) -> None:
        await until(lambda: both.serves(mount.pid) or mount.process.returncode is not None)
        await traffic.use_files()

    host = await both.host(*traffic.ports)
    async with open_background() as nursery:
        nursery.start_soon(traffic.use_sockets)
        await survive(traffic, host, lambda: both.begin_mount("-o", "throttle=block,wait"), use)


@pytest.mark.limit(LIMIT + 10)
async def test_the_host_is_killed(both: Both, numbers: random.Random) -> None:
    traffic = Traffic(both, numbers)

    async def use(host: Program) -> None:
        await until(lambda: host.ready or host.process.returncode is not None)
        await traffic.use_sockets()

    async with open_background() as nursery:
        first = await both.host(*traffic.ports)
        mount = await both.mount("-o", "throttle=block,wait")
        nursery.start_soon(traffic.use_files)
        await first.kill()
        await survive(traffic, mount, lambda: both.begin_host(*traffic.ports), use)

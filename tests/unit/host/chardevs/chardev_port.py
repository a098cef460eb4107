"""A port in memory, whose guest is the test: the near side of a chardev under test."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio
from attrs import define, field
from trio.lowlevel import ParkingLot

from tests.support.waiting import until
from vconfs.host.chardev import Chardev, parse_chardev
from vconfs.protocol.events import Buffer
from vconfs.system.tasks import open_background


@define
class Counters:
    dropped: int = 0


@define(eq=False)
class FakePort:
    """A port for a chardev; the test writes, opens, closes and throttles it as the guest."""

    id: int = 3
    name: bytes = b"fake"
    counters: Counters = field(factory=Counters)
    sink: Callable[[memoryview], int] | None = None
    source: Callable[[int], Buffer] | None = None
    hang_up_client: Callable[[], None] | None = None
    reopen: Callable[[], None] | None = None
    unread: Callable[[], int] | None = None
    patience: float = 1.0

    console: bool = False
    size: tuple[int, int] = (0, 0)
    connected: bool = False
    connects: int = 0
    hang_ups: int = 0
    guest_connected: bool = False
    throttled: bool = False  # the guest takes nothing
    room: int = 1 << 30  # what the guest takes in one `send_nowait`
    sent: list[bytes] = field(factory=list)
    #: What the chardev has not taken; None: the guest closed the port here.
    queue: deque[bytes | None] = field(factory=deque)
    _sessions: int = 0
    _changed: ParkingLot = field(factory=ParkingLot)

    # --- what the chardev does ------------------------------------------------------------

    def connect(self) -> None:
        self.connects += not self.connected
        self.connected = True
        self._changed.unpark_all()

    def disconnect(self) -> None:
        self.connected = False
        self._changed.unpark_all()

    def hang_up(self) -> None:
        self.hang_ups += 1
        self._changed.unpark_all()

    def resize(self, cols: int, rows: int) -> None:
        self.size = (cols, rows)
        self._changed.unpark_all()

    async def next_session(self) -> None:
        await self.until(lambda: self._sessions > 0)
        self._sessions -= 1

    async def receive(self, size: int = 1 << 16) -> bytes:
        await self.until(lambda: bool(self.queue))
        piece = self.queue.popleft() or b""
        if len(piece) > size:
            self.queue.appendleft(piece[size:])
        self._changed.unpark_all()
        return piece[:size]

    async def receive_message(self) -> bytes:
        return await self.receive(1 << 30)

    def delivered(self, size: int) -> None: ...

    def lost(self, size: int) -> None:
        self.counters.dropped += size

    @contextmanager
    def listening(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as scope:
            yield scope

    def put_back(self, data: Buffer) -> None:
        if len(data):
            self.queue.appendleft(bytes(data))

    async def wait_for_data(self) -> None:
        await self.until(lambda: bool(self.queue))

    def peek(self, size: int) -> list[Buffer]:
        first = self.queue[0]
        assert first is not None
        return [first[:size]]

    def took(self, size: int) -> None:
        first = self.queue.popleft()
        assert first is not None
        if len(first) > size:
            self.queue.appendleft(first[size:])

    async def send(self, data: Buffer) -> None:
        await self.until(lambda: not self.throttled)
        self._send(data)

    def send_nowait(self, data: Buffer) -> int:
        size = 0 if self.throttled else min(len(data), self.room)
        if size:
            self._send(memoryview(data)[:size])
        return size

    def _send(self, data: Buffer) -> None:
        self.sent.append(bytes(data))
        self._changed.unpark_all()

    # --- what the guest does --------------------------------------------------------------

    def write(self, data: bytes) -> None:
        taken = self.sink(memoryview(data)) if self.sink and not self.queue else 0
        if taken < len(data) or not data:
            self.queue.append(data[taken:])
        self._changed.unpark_all()

    def open(self) -> None:
        self.guest_connected = True
        self._sessions += 1
        self._changed.unpark_all()

    def close(self) -> None:
        self.guest_connected = False
        self.queue.append(None)
        self._changed.unpark_all()

    def throttle(self, throttled: bool) -> None:
        self.throttled = throttled
        self._changed.unpark_all()

    @property
    def received(self) -> bytes:
        return b"".join(self.sent)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.park()

    async def until_connected(self, connected: bool = True) -> None:
        await self.until(lambda: self.connected == connected)

    async def until_received(self, data: bytes) -> None:
        await self.until(lambda: len(self.received) >= len(data))
        assert self.received == data


@asynccontextmanager
async def serving(what: str | Chardev) -> AsyncIterator[FakePort]:
    """Run a chardev on a port in memory for as long as the block runs."""
    chardev = parse_chardev(what) if isinstance(what, str) else what
    port = FakePort()
    async with open_background() as nursery:
        await nursery.start(chardev.run, port)
        yield port


def descriptors() -> dict[str, str]:
    """Return the open descriptors, except inotify, which is kept for a second after its use."""
    opened = all_descriptors().items()
    return {number: path for number, path in opened if path != "anon_inode:inotify"}


async def until_only_open(before: dict[str, str]) -> None:
    """Wait until the descriptors are those of `before`: threads close theirs when they end."""
    with trio.move_on_after(10):
        await until(lambda: descriptors() == before)
    assert descriptors() == before


def all_descriptors() -> dict[str, str]:
    """Return the descriptors that this process has open."""
    links = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            links[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return links

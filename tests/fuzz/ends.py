"""Targets: a whole end, guest or host, whose peer sends any buffers in either dialect."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import cast

import trio

from vconfs.guest.driver import Driver
from vconfs.guest.port import Opener, Port, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.host.host import open_host
from vconfs.host.port import HostPort, HostPortSpec
from vconfs.link.link import Link, call_soon
from vconfs.protocol.dialect import DIALECTS, End
from vconfs.protocol.events import Buffer, Ignored
from vconfs.testing import Puppet

from .target import Source, target

_BUFFERS = 8
_BUFFER = 4096
_LIMIT = 3000


class PaperLink(Link):
    """A link whose peer is the input. `check` sees each buffer that the end sends."""

    in_flight = _BUFFERS * _BUFFER

    def __init__(self, features: int, peer: End) -> None:
        self.features = features
        self.config_space = bytes(8)
        self.is_full = False
        self._peer = peer
        self._came: dict[int, deque[bytes]] = {}
        self._withheld: dict[int, int] = {}
        self._unseen: list[Callable[[], None]] = []

    @property
    def config(self) -> bytes:
        return self.config_space

    def room_for(self, queue: int, header_size: int) -> int:
        return 0 if self.is_full else 2 * (_BUFFER - header_size)

    def find_buffer(self, queue: int, wanted: int) -> int:
        return 0 if self.is_full else _BUFFER

    def send(
        self,
        queue: int,
        header: bytes,
        data: Buffer,
        seen: Callable[[], None] | None = None,
        *,
        port_id: int | None = None,
    ) -> int:
        data = data[: _BUFFER - len(header)]
        event = self._peer.receive(queue, memoryview(header + bytes(data)))
        assert not isinstance(event, Ignored), event
        if seen is not None:
            self._unseen.append(seen)
        return len(data)

    def come(self, queue: int, buffer: bytes) -> None:
        """Let a buffer come, if the peer has one: it gets none back that is withheld."""
        came = self._came.setdefault(queue, deque())
        if len(came) + self._withheld.get(queue, 0) < _BUFFERS:
            came.append(buffer)
            self.owner.received(queue)

    def see(self) -> None:
        """Let the peer see all that was sent."""
        unseen, self._unseen = self._unseen, []
        for seen in unseen:
            seen()

    def receive(self, queue: int) -> memoryview | None:
        came = self._came.get(queue)
        return memoryview(came.popleft()) if came else None

    def again(self, queue: int) -> None:
        call_soon(self.owner.received, queue)

    def done(self, queue: int) -> None: ...
    def flush(self, queue: int) -> None: ...

    def withhold(self, queue: int) -> None:
        self._withheld[queue] = self._withheld.get(queue, 0) + 1

    def release(self, queue: int) -> None:
        self._withheld[queue] = 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing: a peer that breaks rules is logged."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _dialect(source: Source) -> tuple[str, int]:
    bits = source.number()
    dialect = "virtio1" if bits & 1 else "v8"
    return dialect, DIALECTS[dialect].features if bits & 2 else 0


class _Program:
    """Uses the files of the guest's ports, and checks how much of their data it has had."""

    def __init__(self, manager: PortManager) -> None:
        self._manager = manager
        self._openers: dict[Port, list[Opener]] = {}
        self._read: dict[Port, int] = {}

    def act(self, source: Source) -> None:
        port = self._manager.ports.get(source.number())
        step, size = source.number() % 5, source.number(2)
        if port is None:
            return
        openers = self._openers.setdefault(port, [])
        with suppress(OSError, trio.WouldBlock):
            if step == 0 and len(openers) < 4:
                opener = Opener(1)
                port.open(opener, quiet=bool(size & 1))
                openers.append(opener)
            elif step == 1 and openers:
                port.close(openers.pop())
            elif step == 2 and openers:
                data = port.read_nowait(size, openers[0])
                self._read[port] = self._read.get(port, 0) + sum(map(len, data))
            elif step == 3 and openers:
                port.write_nowait(bytes(size % 9000), nonblock=True)
            elif step == 4 and openers:
                port.answer_poll(openers[0])

    def check(self) -> None:
        for port in self._manager.ports.values():
            counters, read = port.counters, self._read.get(port, 0)
            assert counters.bytes_in == read + port.queued + counters.dropped
            assert port.queued <= 2 * max(port.limit, _LIMIT) + PaperLink.in_flight


async def _be_host(source: Source) -> None:
    dialect, features = _dialect(source)
    manager = PortManager(lambda port_id: PortOptions(limit=_LIMIT))
    link = PaperLink(features, DIALECTS[dialect].host(features))
    link.config_space = source.take(8).ljust(8, b"\0")[:5] + bytes(3)  # at most 255 ports
    end = DIALECTS[dialect].guest(features)
    driver, program = Driver(manager, link, end), _Program(manager)
    driver.start()
    while source.more:
        step = source.number() % 6
        if step == 0:
            link.come(2 * (source.number() % (end.queues // 2)), source.piece(2)[:_BUFFER])
        elif step == 1:
            link.config_space = source.take(8).ljust(8, b"\0")[:5] + bytes(3)
            driver.config_changed()
        elif step == 2:
            link.is_full = not link.is_full
            for queue in range(1, end.queues if not link.is_full else 0, 2):
                driver.room(queue)
        elif step == 3:
            link.see()
        else:
            program.act(source)
        await trio.lowlevel.checkpoint()
        program.check()
    await driver.take_rest()
    driver.stop()


@target()
def guest_end(data: bytes) -> None:
    with _quiet():
        trio.run(_be_host, Source(data))


async def _be_guest(source: Source) -> None:
    dialect, features = _dialect(source)
    link = PaperLink(features, DIALECTS[dialect].guest(features))
    puppets = [Puppet() for _ in range(3)]
    specs = [
        HostPortSpec(
            b"port%d" % port_id, puppet, cache=port_id == 2, host_limit=_LIMIT, console=port_id == 0
        )
        for port_id, puppet in enumerate(puppets)
    ]
    async with open_host(specs, patience=0) as host:
        end = DIALECTS[dialect].host(features)
        guest = host.attach(link, end, lambda: None)
        guest.start()
        taken = dict.fromkeys(range(3), 0)
        while source.more:
            step = source.number() % 6
            if step == 0:
                link.come(2 * (source.number() % (end.queues // 2)) + 1, source.piece(2)[:_BUFFER])
            elif step == 1:
                link.see()
            elif step == 2:
                link.is_full = not link.is_full
                for queue in range(0, end.queues if not link.is_full else 0, 2):
                    guest.room(queue)
            else:
                port_id = source.number() % 3
                taken[port_id] += await _use(cast(HostPort, puppets[port_id].port), source)
            await trio.lowlevel.checkpoint()
            for port_id, port in host.ports.items():
                assert (
                    port.counters.bytes_in == taken[port_id] + port.queued + port.counters.dropped
                )
                assert port.queued <= 2 * _LIMIT + PaperLink.in_flight
        host.detach()


async def _use(port: HostPort, source: Source) -> int:
    """Do what a chardev does; return how many of the guest's bytes it has taken."""
    step, size = source.number() % 5, source.number(2)
    if step == 0:
        port.connect()
    elif step == 1:
        port.disconnect()
    elif step == 2 and port.connected:
        port.send_nowait(bytes(size))
    elif step == 3:
        port.hang_up()
    elif step == 4 and port.queued:
        data = await port.receive(size + 1)
        port.delivered(len(data))
        return len(data)
    return 0


@target()
def host_end(data: bytes) -> None:
    with _quiet():
        trio.run(_be_guest, Source(data))

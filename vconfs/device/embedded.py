"""The embedded device: a host end in the same process, over real rings in anonymous memory."""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import trio
from attrs import evolve

from vconfs.device._device_memory import DeviceMemory
from vconfs.device._queue_shapes import queue_specs
from vconfs.device._rings import RingLink
from vconfs.device._slots import QueueSpec, memory_for, set_up_queues
from vconfs.host.host import Host
from vconfs.host.rings import DeviceLink
from vconfs.link.link import OpenDevice
from vconfs.protocol.dialect import DIALECTS
from vconfs.protocol.virtqueue import DeviceQueue, GuestMemory
from vconfs.system.tasks import open_background

#: The most notifications that are answered at once. Then other tasks have their turn.
_TURN = 64


class Doorbell:
    """Notifies one end of the other's buffers, at once, but never from inside an answer.

    If it is rung during an answer, that is answered afterwards. If the two ends keep ringing each
    other, the rest is left to `run`, so that other tasks do not starve.
    """

    def __init__(self) -> None:
        self.answer: Callable[[int], None] = lambda queue: None
        self._rung: dict[int, None] = {}  # an ordered set
        self._answering = False
        self._left = trio.lowlevel.ParkingLot()

    def ring(self, queue: int) -> None:
        """Notify the other end of buffers of `queue`."""
        self._rung[queue] = None
        if not self._answering:
            self._answer_some()

    async def run(self) -> None:
        """Answer the notifications that were left over."""
        while True:
            if not self._rung:
                await self._left.park()
            await trio.lowlevel.checkpoint()
            self._answer_some()

    def _answer_some(self) -> None:
        self._answering = True
        try:
            for _ in range(_TURN):
                if not self._rung:
                    return
                queue = next(iter(self._rung))
                del self._rung[queue]
                self.answer(queue)
        finally:
            self._answering = False
        self._left.unpark_all()


@asynccontextmanager
async def open_embedded(
    host: Host,
    dialect: str = "v8",
    *,
    specs: Mapping[int, QueueSpec] | None = None,
    doorbells: tuple[Doorbell, Doorbell] | None = None,
) -> AsyncIterator[OpenDevice]:
    """Connect to `host` as its guest while the block runs.

    Tests use other shapes of queues, and doorbells (kicks and calls) that they ring themselves.
    """
    spoken = DIALECTS[dialect]
    host_end, guest_end = spoken.host(spoken.features), spoken.guest(spoken.features)
    if specs is None:
        found = queue_specs(guest_end.queues)
        specs = {number: evolve(spec, private=True) for number, spec in found.items()}
    view = memoryview(mmap.mmap(-1, memory_for(specs.values())))
    kicks, calls = doorbells or (Doorbell(), Doorbell())
    driver_link = RingLink(
        await set_up_queues(DeviceMemory.at(view), specs),
        features=spoken.features,
        kick=kicks.ring,
        read_config=lambda: host_end.config(host.port_count, *host.size),
    )
    guest_memory = GuestMemory([(0, view)])
    rings = {
        number: DeviceQueue(guest_memory, driver_link.layout(number))
        for number in range(guest_end.queues)
    }
    device_link = DeviceLink(
        rings, features=spoken.features, call=calls.ring, header_size=host_end.header_size
    )
    kicks.answer, calls.answer = device_link.kicked, driver_link.interrupt
    attached = host.attach(device_link, host_end, driver_link.config_interrupt, "embedded")
    async with open_background() as nursery:
        nursery.start_soon(kicks.run)
        nursery.start_soon(calls.run)
        attached.start()
        try:
            yield driver_link, guest_end
        finally:
            host.detach()
            driver_link.owner.left()

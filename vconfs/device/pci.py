"""The driver for a virtio console on a PCI bus, over any `Transport` to the function.

It does what virtio 1.2 §3.1 requires, in that order: find the structures, negotiate features,
divide memory and interrupt vectors among the queues, answer interrupts, and reset the device at the
end. The registers are in _pci_console.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from vconfs.device._device_memory import DeviceMemory
from vconfs.device._pci_console import CONFIG_SIZE, PciConsole, Transport
from vconfs.device._rings import RingLink
from vconfs.device._slots import QueueSpec, memory_for, set_up_queues
from vconfs.errors import VconfsError
from vconfs.link.link import OpenDevice, leave_soon
from vconfs.protocol import virtio1, virtio_pci
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.virtio_pci import Common, Isr, Status
from vconfs.protocol.virtqueue import F_EVENT_IDX, F_INDIRECT_DESC, SIZE_MAX
from vconfs.system.tasks import in_portions, open_background

DIALECT: Final = "virtio1"
_MAX_PORTS_AT: Final = 4

#: Seconds between two checks of the device's status.
_LOOK_SECONDS: Final = 5.0

_CONTROL: Final = QueueSpec(size=64, slot_size=4096)
#: The buffers of a port: receive buffers, send buffers, and the size of a send buffer. The first
#: row for which there is memory is used. QEMU fills at most 4096 bytes of a receive buffer.
_SHAPES: Final = (
    (128, 16, 1 << 16),
    (128, 8, 1 << 16),
    (64, 4, 1 << 16),
    (32, 4, 1 << 15),
    (16, 4, 1 << 14),
    (8, 4, 1 << 13),
    (4, 2, 1 << 12),
)
_RECEIVE_SIZE: Final = 4096
#: The least memory of a queue: a page of rings and a buffer.
_QUEUE_MIN: Final = 8192


class _Running:
    """A device that was set up: its link, and the handling of its interrupts."""

    def __init__(self, transport: Transport, device: PciConsole) -> None:
        self._transport = transport
        self._device = device
        self._config = b""
        self._vectors = 0
        self._stopping = False
        self.features = 0
        self.link: RingLink

    async def set_up(self) -> None:
        """Negotiate, and set up all queues; the device does not start yet."""
        transport, device = self._transport, self._device
        await device.reset()
        self.features = await device.negotiate(_wanted_features(device.config_size))
        self._config = await device.read_device_config()
        count = _queue_count(self.features, self._config)
        offered = await device.get(Common.NUM_QUEUES)
        if count > offered:
            raise RemoteProtocolError(f"num_queues is {offered}, and {count} are needed")
        if count * _QUEUE_MIN > transport.memory.size:
            raise transport.memory.too_little(count)
        sizes = [await device.queue_size(queue) for queue in range(count)]
        specs = plan_queues(sizes, self.features, transport.memory)
        event_idx = bool(self.features & F_EVENT_IDX)
        self.link = RingLink(
            await set_up_queues(transport.memory, specs, event_idx=event_idx),
            features=self.features,
            kick=device.kick,
            read_config=lambda: self._config,
            write_config=device.write_device_config,
            stop_device=self._stop,
        )
        self._queues = list(specs)
        await self._share_vectors()
        await in_portions(self._set_up_queue, self._queues)

    def _set_up_queue(self, queue: int) -> None:
        self._device.set_up_queue(queue, self.link.layout(queue), self.link.base(queue))

    async def _share_vectors(self) -> None:
        """Divide the vectors among the queues; use fewer, or the line, if some are refused."""
        transport, device = self._transport, self._device
        most = await transport.enable_vectors(device.msix)
        for count in dict.fromkeys((most, 2, 1)):
            self._vectors = min(count, most)
            vectors = {queue: self._vector_of(queue) for queue in self._queues}
            if not self._vectors or await device.set_vectors(0, vectors):
                return
        self._vectors = await transport.enable_vectors(None)

    def _vector_of(self, queue: int) -> int:
        """Return the vector of a queue: 0 for config changes, and for all if it is the only one."""
        return 1 + queue % (self._vectors - 1) if self._vectors > 1 else 0

    async def serve(self) -> None:
        """Answer interrupts until the device is lost."""
        try:
            while True:
                vectors = await self._transport.wait_interrupt()
                if vectors:
                    await self._serve_vectors(vectors)
                else:
                    await self._serve_line()
        except (VconfsError, RemoteProtocolError) as error:
            self.link.fail(str(error))

    async def _serve_line(self) -> None:
        reason = await self._device.read_isr()
        if reason & Isr.CONFIG:
            await self._config_changed()
        if reason & Isr.QUEUE:
            self.link.interrupt_used(self._queues)

    async def _serve_vectors(self, vectors: Collection[int]) -> None:
        if 0 in vectors:
            await self._config_changed()
        self.link.interrupt_used(q for q in self._queues if self._vector_of(q) in vectors)

    async def watch(self) -> None:
        """Check the device's status repeatedly: no interrupt reports a reset."""
        try:
            while True:
                await trio.sleep(_LOOK_SECONDS)
                await self._check_status()
        except VconfsError as error:
            self.link.fail(str(error))

    async def _stop(self, patience: float) -> None:
        """Reset the device, after which it leaves the rings alone."""
        self._stopping = True
        with suppress(VconfsError):
            await self._device.reset()

    async def _check_status(self) -> None:
        status = await self._device.get(Common.DEVICE_STATUS)
        if self._stopping:  # perhaps since we asked
            return
        if status == 0xFF:
            raise VconfsError("the device is gone")
        if status & Status.NEEDS_RESET:
            raise VconfsError("the device met an error and needs a reset")
        if not status & Status.DRIVER_OK:
            raise VconfsError("another program has reset the device")

    async def _config_changed(self) -> None:
        await self._check_status()
        config = await self._device.read_device_config()
        if config != self._config:
            self._config = config
            self.link.config_interrupt()


@asynccontextmanager
async def open_pci(
    transport: Transport, *, resize_rows_first: bool = False
) -> AsyncIterator[OpenDevice]:
    """Drive the console behind `transport` while the block runs.

    The device is reset at the end. With `resize_rows_first`, it sends sizes in the order that Linux
    reads, not in the standard's. Raise VconfsError if it cannot be used.
    """
    try:
        device = await PciConsole.probe(transport)
        running = _Running(transport, device)
    except RemoteProtocolError as error:
        raise VconfsError(str(error)) from None
    try:
        try:
            await running.set_up()
        except RemoteProtocolError as error:
            device.fail()
            raise VconfsError(str(error)) from None
        end = virtio1.GuestEnd(running.features, resize_rows_first=resize_rows_first)
        async with open_background() as nursery:
            device.go()
            nursery.start_soon(running.serve)
            nursery.start_soon(running.watch)
            try:
                yield running.link, end
            finally:
                await leave_soon(running.link)
                running.link.owner.left()
    finally:
        with trio.CancelScope(shield=True), suppress(VconfsError):
            await device.reset()


def _wanted_features(config_size: int) -> int:
    transport = virtio_pci.F_ACCESS_PLATFORM | F_EVENT_IDX | F_INDIRECT_DESC
    can_speak = config_size >= virtio1.EMERGENCY_WRITE.stop
    return virtio1.FEATURES | transport | (virtio1.F_EMERG_WRITE if can_speak else 0)


def _queue_count(features: int, config: bytes) -> int:
    """Return the number of queues: a pair for each port, and one for control messages."""
    if not features & virtio1.F_MULTIPORT:
        return 2
    if len(config) < CONFIG_SIZE:
        raise RemoteProtocolError(f"a device config of {len(config)} bytes is too short")
    ports = int.from_bytes(config[_MAX_PORTS_AT:CONFIG_SIZE], "little")
    if not 0 < ports < SIZE_MAX:
        raise RemoteProtocolError(f"max_nr_ports {ports}")
    return 2 * ports + 2


def plan_queues(sizes: list[int], features: int, memory: DeviceMemory) -> dict[int, QueueSpec]:
    """Divide the memory among the queues. Raise VconfsError if it is too little.

    `sizes` are the most descriptors that each queue may have.
    """
    control = (2, 3) if features & virtio1.F_MULTIPORT else ()
    controls = {n: QueueSpec(min(sizes[n], _CONTROL.size), _CONTROL.slot_size) for n in control}
    left = memory.size - memory_for(controls.values())
    # Most queues are alike, and there can be 65534 of them.
    kinds = [(queue % 2, size) for queue, size in enumerate(sizes)]
    count = Counter(kinds) - Counter(kinds[queue] for queue in control)
    for shape in _SHAPES:
        spec_of = {kind: _port_queue(shape, features, *kind) for kind in count}
        if sum(spec_of[kind].memory * times for kind, times in count.items()) > left:
            continue
        specs = {n: controls.get(n) or spec_of[kind] for n, kind in enumerate(kinds)}
        if len(memory.runs) == 1 or memory.has_room([spec.memory for spec in specs.values()]):
            return specs
    raise memory.too_little(len(sizes))


def _port_queue(shape: tuple[int, int, int], features: int, sends: int, size: int) -> QueueSpec:
    receive, send, send_size = shape
    if not sends:
        return QueueSpec(min(size, receive), _RECEIVE_SIZE)
    slots = min(send, size)
    parts = max(1, slots // 2) if features & F_INDIRECT_DESC else 1
    return QueueSpec(min(size, 128), send_size, slots, parts, shared=False)

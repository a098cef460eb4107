"""The driver for a virtio console on a PCI bus, over whatever reaches the function.

A transport reads and writes the function's config space and BARs, has memory that the device
can reach, and says when an interrupt came. Everything else is here: finding the structures,
the feature negotiation, the queues, interrupts, and the reset at the end (virtio 1.2 §3.1, §4.1).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

import trio

from vconfs.background import open_background
from vconfs.device.errors import DeviceError
from vconfs.device.rings import QueueSpec, RingLink
from vconfs.driver import Driver
from vconfs.ports import PortManager
from vconfs.protocol import virtio_pci
from vconfs.protocol.dialect import DIALECTS
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.virtio_pci import Common, Function, Isr, Msix, Register, Status
from vconfs.protocol.virtqueue import F_EVENT_IDX, F_INDIRECT_DESC, SIZE_MAX, Layout

log = logging.getLogger(__name__)

DIALECT: Final = "virtio1"
_F_MULTIPORT: Final = 1 << 1

#: How long a device may take to reset, and how often we look meanwhile.
_RESET_SECONDS: Final = 2.0
_RESET_STEP: Final = 0.001
#: So often is a config space read again that keeps changing while it is read.
_CONFIG_TRIES: Final = 20
#: cols, rows, max_nr_ports: emerg_wr is for writing only.
_CONFIG_SIZE: Final = 8
_MAX_PORTS_AT: Final = 4

_CONTROL: Final = QueueSpec(size=64, slot_size=4096)
#: What a port gets: receive buffers, sending buffers, and bytes of each of the latter. The first
#: that all ports have memory for. QEMU fills at most 4096 bytes of a receive buffer.
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


class Transport(Protocol):
    """A way to one PCI function.

    All accesses are little-endian numbers and take effect in order. What fails, or takes too
    long, raises DeviceError.
    """

    #: Memory that the device can reach, and the device's address of its first byte.
    memory: memoryview
    base: int

    async def read_config(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of the function's config space."""

    async def read_whole_config(self) -> bytes:
        """Read the first 256 bytes of the config space."""

    async def bar_sizes(self) -> Mapping[int, int]:
        """Give the size of each memory BAR; they can be accessed from now on."""

    async def read(self, bar: int, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of a BAR."""

    def post(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of a BAR; never waits, and is harmless when the device is gone."""

    async def enable_vectors(self, msix: Msix | None) -> int:
        """Turn MSI-X interrupts on and say how many vectors there are; 0: the line is used."""

    async def wait_interrupt(self) -> Collection[int]:
        """Wait for an interrupt, and give its vectors; none: it was the line."""


class PciConsole:
    """The registers of one function."""

    def __init__(self, transport: Transport, function: Function) -> None:
        self._transport = transport
        self._function = function
        #: Queue -> where in the notify BAR it is kicked.
        self._kicks: dict[int, int] = {}

    @classmethod
    async def probe(cls, transport: Transport) -> PciConsole:
        """Look for the structures of a modern console; RemoteProtocolError: it is none."""
        function = virtio_pci.parse_function(await transport.read_whole_config())
        function.check_bars(await transport.bar_sizes())
        return cls(transport, function)

    @property
    def msix(self) -> Msix | None:
        """The function's MSI-X capability, if it has one."""
        return self._function.msix

    async def get(self, register: Register) -> int:
        """Read a register of the common structure."""
        common = self._function.common
        return await self._transport.read(
            common.bar, common.offset + register.offset, register.size
        )

    def set(self, register: Register, value: int) -> None:
        """Write a register of the common structure."""
        common = self._function.common
        self._transport.post(common.bar, common.offset + register.offset, register.size, value)

    async def reset(self) -> None:
        """Reset the device, and wait until it has."""
        self.set(Common.DEVICE_STATUS, 0)
        with trio.move_on_after(_RESET_SECONDS):
            while await self.get(Common.DEVICE_STATUS):
                await trio.sleep(_RESET_STEP)
            return
        raise DeviceError(f"the device has not finished a reset in {_RESET_SECONDS:g} s")

    async def negotiate(self, wanted: int) -> int:
        """Agree on features, as far as FEATURES_OK."""
        status = Status.ACKNOWLEDGE | Status.DRIVER
        self.set(Common.DEVICE_STATUS, Status.ACKNOWLEDGE)
        self.set(Common.DEVICE_STATUS, status)
        offered = 0
        for word in range(2):
            self.set(Common.DEVICE_FEATURE_SELECT, word)
            offered |= await self.get(Common.DEVICE_FEATURE) << 32 * word
        features = virtio_pci.choose_features(offered, wanted)
        for word in range(2):
            self.set(Common.DRIVER_FEATURE_SELECT, word)
            self.set(Common.DRIVER_FEATURE, features >> 32 * word & 0xFFFFFFFF)
        self.set(Common.DEVICE_STATUS, status | Status.FEATURES_OK)
        if not await self.get(Common.DEVICE_STATUS) & Status.FEATURES_OK:
            self.fail()
            raise DeviceError(
                f"the device refuses the features {features:#x} of its own {offered:#x}"
            )
        return features

    def fail(self) -> None:
        """Tell the device that we gave it up."""
        self.set(Common.DEVICE_STATUS, Status.FAILED)

    def go(self) -> None:
        """Tell the device that everything is set up."""
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
        self.set(Common.DEVICE_STATUS, status)

    async def read_isr(self) -> int:
        """Read why the interrupt line was raised, and lower it."""
        return await self._transport.read(self._function.isr.bar, self._function.isr.offset, 1)

    async def read_device_config(self) -> bytes:
        """Read the console's config space, whole and of one generation."""
        region = self._function.config
        size = min(region.length, _CONFIG_SIZE) & ~3
        for _ in range(_CONFIG_TRIES):
            before = await self.get(Common.CONFIG_GENERATION)
            words = [
                await self._transport.read(region.bar, region.offset + at, 4)
                for at in range(0, size, 4)
            ]
            if await self.get(Common.CONFIG_GENERATION) == before:
                return b"".join(word.to_bytes(4, "little") for word in words)
        raise DeviceError("the device's config space does not stand still")

    async def queue_size(self, queue: int) -> int:
        """Select a queue, and say how many descriptors it may have."""
        self.set(Common.QUEUE_SELECT, queue)
        size = await self.get(Common.QUEUE_SIZE)
        if not 0 < size <= SIZE_MAX or size & (size - 1):
            raise RemoteProtocolError(f"queue_size {size} of queue {queue}")
        if await self.get(Common.QUEUE_ENABLE):
            raise RemoteProtocolError(f"queue_enable of queue {queue} is set after a reset")
        notify_off = await self.get(Common.QUEUE_NOTIFY_OFF)
        self._kicks[queue] = self._function.notify_offset(queue, notify_off)
        return size

    async def set_up_queue(self, queue: int, layout: Layout, base: int, vector: int) -> None:
        """Tell the device where a queue is and which vector it has, and enable it."""
        self.set(Common.QUEUE_SELECT, queue)
        self.set(Common.QUEUE_SIZE, layout.size)
        for low, high, offset in (
            (Common.QUEUE_DESC_LOW, Common.QUEUE_DESC_HIGH, layout.desc),
            (Common.QUEUE_DRIVER_LOW, Common.QUEUE_DRIVER_HIGH, layout.avail),
            (Common.QUEUE_DEVICE_LOW, Common.QUEUE_DEVICE_HIGH, layout.used),
        ):
            self.set(low, base + offset & 0xFFFFFFFF)
            self.set(high, base + offset >> 32)
        await self._set_vector(Common.QUEUE_MSIX_VECTOR, vector, f"queue {queue}")
        self.set(Common.QUEUE_ENABLE, 1)

    async def set_config_vector(self, vector: int) -> None:
        """Choose the vector of config changes."""
        await self._set_vector(Common.CONFIG_MSIX_VECTOR, vector, "config changes")

    async def _set_vector(self, register: Register, vector: int, what: str) -> None:
        if vector == virtio_pci.NO_VECTOR:
            return
        self.set(register, vector)
        if await self.get(register) != vector:
            raise DeviceError(f"the device refuses MSI-X vector {vector} for {what}")

    def kick(self, queue: int) -> None:
        """Notify the device of a queue."""
        self._transport.post(self._function.notify.bar, self._kicks[queue], 2, queue)


class _Running:
    """A device that was set up: its link, and what its interrupts mean."""

    def __init__(self, transport: Transport, device: PciConsole) -> None:
        self._transport = transport
        self._device = device
        self._config = b""
        self._vectors = 0
        self.features = 0
        self.link: RingLink

    async def set_up(self) -> None:
        """Negotiate, and set up all queues; the device is not yet told to go."""
        transport, device = self._transport, self._device
        await device.reset()
        self.features = await device.negotiate(_wanted_features())
        self._config = await device.read_device_config()
        self._vectors = await transport.enable_vectors(device.msix)
        count = _queue_count(self.features, self._config)
        offered = await device.get(Common.NUM_QUEUES)
        if count > offered:
            raise RemoteProtocolError(f"num_queues is {offered}, and {count} are needed")
        sizes = [await device.queue_size(queue) for queue in range(count)]
        specs = plan_queues(sizes, self.features, len(transport.memory))
        self.link = RingLink(
            transport.memory,
            specs,
            features=self.features,
            kick=device.kick,
            read_config=lambda: self._config,
            base=transport.base,
            event_idx=bool(self.features & F_EVENT_IDX),
        )
        await device.set_config_vector(0 if self._vectors else virtio_pci.NO_VECTOR)
        for queue in specs:
            layout = self.link.layout(queue)
            await device.set_up_queue(queue, layout, transport.base, self._vector_of(queue))
        self._queues = list(specs)

    def _vector_of(self, queue: int) -> int:
        """Vector 0 is for config changes and, where it is the only one, for everything."""
        if not self._vectors:
            return virtio_pci.NO_VECTOR
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
        except (DeviceError, RemoteProtocolError) as error:
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

    async def _config_changed(self) -> None:
        status = await self._device.get(Common.DEVICE_STATUS)
        if status == 0xFF:
            raise DeviceError("the device is gone")
        if status & Status.NEEDS_RESET:
            raise DeviceError("the device met an error and needs a reset")
        config = await self._device.read_device_config()
        if config != self._config:
            self._config = config
            self.link.config_interrupt()


@asynccontextmanager
async def open_pci(manager: PortManager, transport: Transport) -> AsyncIterator[Driver]:
    """Drive the console behind `transport` for as long as the block runs.

    The device is reset at the end. DeviceError: it cannot be used.
    """
    try:
        device = await PciConsole.probe(transport)
        running = _Running(transport, device)
    except RemoteProtocolError as error:
        raise DeviceError(str(error)) from None
    try:
        try:
            await running.set_up()
        except RemoteProtocolError as error:
            device.fail()
            raise DeviceError(str(error)) from None
        driver = Driver(manager, running.link, DIALECTS[DIALECT].guest(running.features))
        async with open_background() as nursery:
            device.go()
            running.link.start()
            driver.start()
            nursery.start_soon(running.serve)
            try:
                yield driver
            finally:
                driver.stop()
    finally:
        with trio.CancelScope(shield=True), suppress(DeviceError):
            await device.reset()


def _wanted_features() -> int:
    transport = virtio_pci.F_ACCESS_PLATFORM | F_EVENT_IDX | F_INDIRECT_DESC
    return DIALECTS[DIALECT].features | transport


def _queue_count(features: int, config: bytes) -> int:
    """How many queues the console has: a pair per port, and one for control messages."""
    if not features & _F_MULTIPORT:
        return 2
    if len(config) < _CONFIG_SIZE:
        raise RemoteProtocolError(f"a device config of {len(config)} bytes is too short")
    ports = int.from_bytes(config[_MAX_PORTS_AT:_CONFIG_SIZE], "little")
    if not 0 < ports < SIZE_MAX:
        raise RemoteProtocolError(f"max_nr_ports {ports}")
    return 2 * ports + 2


def plan_queues(sizes: list[int], features: int, memory: int) -> dict[int, QueueSpec]:
    """Share the memory out among the queues; DeviceError: there is too little of it.

    `sizes` are the most descriptors that each queue may have.
    """
    control = (2, 3) if features & _F_MULTIPORT else ()
    for receive, send, send_size in _SHAPES:
        specs = {}
        for queue, size in enumerate(sizes):
            if queue in control:
                spec = QueueSpec(min(size, _CONTROL.size), _CONTROL.slot_size)
            elif queue % 2:
                slots = min(send, size)
                parts = max(1, slots // 2) if features & F_INDIRECT_DESC else 1
                spec = QueueSpec(min(size, 128), send_size, slots, parts)
            else:
                spec = QueueSpec(min(size, receive), _RECEIVE_SIZE)
            specs[queue] = spec
        if sum(spec.memory for spec in specs.values()) <= memory:
            return specs
    raise DeviceError(f"{memory >> 20} MiB of memory are too few for {len(sizes)} queues")

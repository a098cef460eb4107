"""The registers of a virtio console on a PCI bus, over whatever reaches the function.

A transport reads and writes the function's config space and BARs, has memory that the device
can reach, and says when an interrupt came (virtio 1.2 §4.1). What is done with the registers, and
in which order, is in pci.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Protocol

import trio

from vconfs.errors import VconfsError
from vconfs.protocol import virtio_pci
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer
from vconfs.protocol.virtio_pci import Common, Function, Msix, Register, Status
from vconfs.protocol.virtqueue import SIZE_MAX, Layout

#: cols, rows, max_nr_ports: what is read of the console's config space; emerg_wr is only written.
CONFIG_SIZE: Final = 8

#: How long a device may take to reset, and how often we look meanwhile.
_RESET_SECONDS: Final = 2.0
_RESET_STEP: Final = 0.001
#: So often is a config space read again that keeps changing while it is read.
_CONFIG_TRIES: Final = 20


class Transport(Protocol):
    """A way to one PCI function.

    All accesses are little-endian numbers and take effect in order. What fails, or takes too
    long, raises VconfsError.
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
        """Turn MSI-X interrupts on and say how many vectors there are; 0: the line is used.

        Without `msix`, they are turned off again if they were on.
        """

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
            while await self.get(Common.DEVICE_STATUS):  # noqa: ASYNC110 - a register
                await trio.sleep(_RESET_STEP)
            return
        raise VconfsError(f"the device has not finished a reset in {_RESET_SECONDS:g} s")

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
            raise VconfsError(
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
        size = min(region.length, CONFIG_SIZE) & ~3
        for _ in range(_CONFIG_TRIES):
            before = await self.get(Common.CONFIG_GENERATION)
            words = [
                await self._transport.read(region.bar, region.offset + at, 4)
                for at in range(0, size, 4)
            ]
            if await self.get(Common.CONFIG_GENERATION) == before:
                return b"".join(word.to_bytes(4, "little") for word in words)
        raise VconfsError("the device's config space does not stand still")

    @property
    def config_size(self) -> int:
        """How many bytes the console's config space has."""
        return self._function.config.length

    def write_device_config(self, offset: int, data: Buffer) -> None:
        """Write 1, 2 or 4 bytes of the console's config space, which lie inside of it."""
        region, size = self._function.config, len(data)
        value = int.from_bytes(data, "little")
        self._transport.post(region.bar, region.offset + offset, size, value)

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

    async def set_vectors(self, config: int, queues: Mapping[int, int]) -> bool:
        """Choose the vectors of config changes and of each queue; False: one was refused."""
        self.set(Common.CONFIG_MSIX_VECTOR, config)
        if await self.get(Common.CONFIG_MSIX_VECTOR) != config:
            return False
        for queue, vector in queues.items():
            self.set(Common.QUEUE_SELECT, queue)
            self.set(Common.QUEUE_MSIX_VECTOR, vector)
            if await self.get(Common.QUEUE_MSIX_VECTOR) != vector:
                return False
        return True

    def set_up_queue(self, queue: int, layout: Layout, base: int) -> None:
        """Tell the device where a queue is, and enable it."""
        self.set(Common.QUEUE_SELECT, queue)
        self.set(Common.QUEUE_SIZE, layout.size)
        for low, high, offset in (
            (Common.QUEUE_DESC_LOW, Common.QUEUE_DESC_HIGH, layout.desc),
            (Common.QUEUE_DRIVER_LOW, Common.QUEUE_DRIVER_HIGH, layout.avail),
            (Common.QUEUE_DEVICE_LOW, Common.QUEUE_DEVICE_HIGH, layout.used),
        ):
            self.set(low, base + offset & 0xFFFFFFFF)
            self.set(high, base + offset >> 32)
        self.set(Common.QUEUE_ENABLE, 1)

    def kick(self, queue: int) -> None:
        """Notify the device of a queue."""
        self._transport.post(self._function.notify.bar, self._kicks[queue], 2, queue)

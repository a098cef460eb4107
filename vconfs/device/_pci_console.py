"""The registers of a virtio console on a PCI bus, over any `Transport` to the function.

A transport reads and writes the function's config space and BARs, has memory that the device can
access, and reports interrupts (virtio 1.2 §4.1). The order in which a driver uses the registers is
in pci.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Protocol

import trio

from vconfs.device._device_memory import DeviceMemory
from vconfs.errors import VconfsError
from vconfs.protocol import virtio_pci
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer
from vconfs.protocol.virtio_pci import Common, Function, Msix, Register, Status
from vconfs.protocol.virtqueue import SIZE_MAX, Layout

#: The part of the config space that is read: cols, rows, max_nr_ports. emerg_wr is only written.
CONFIG_SIZE: Final = 8

#: Seconds that a device may take to reset, and seconds between two checks.
_RESET_SECONDS: Final = 2.0
_RESET_STEP: Final = 0.001
#: How many times a config space is read that changes while it is read.
_CONFIG_TRIES: Final = 20


class Transport(Protocol):
    """A way to one PCI function.

    All accesses are little-endian numbers and take effect in order. An access that fails, or takes
    too long, raises VconfsError.
    """

    memory: DeviceMemory

    async def read_config(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of the function's config space."""

    async def read_whole_config(self) -> bytes:
        """Read the first 256 bytes of the config space."""

    async def bar_sizes(self) -> Mapping[int, int]:
        """Return the size of each memory BAR, and make the BARs accessible."""

    async def read(self, bar: int, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of a BAR."""

    def post(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of a BAR, without waiting. Do nothing if the device is gone."""

    async def enable_vectors(self, msix: Msix | None) -> int:
        """Enable MSI-X interrupts. Return the number of vectors, or 0 if the line is used.

        Without `msix`, disable them again.
        """

    async def wait_interrupt(self) -> Collection[int]:
        """Wait for an interrupt. Return its vectors, or none if it was the line."""


class PciConsole:
    """The registers of one function."""

    def __init__(self, transport: Transport, function: Function) -> None:
        self._transport = transport
        self._function = function
        #: Queue -> the offset in the notify BAR at which it is kicked.
        self._kicks: dict[int, int] = {}

    @classmethod
    async def probe(cls, transport: Transport) -> PciConsole:
        """Find the structures of a modern console. Raise RemoteProtocolError if it is not one."""
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
        """Reset the device, and wait until that is done."""
        self.set(Common.DEVICE_STATUS, 0)
        with trio.move_on_after(_RESET_SECONDS):
            while await self.get(Common.DEVICE_STATUS):  # noqa: ASYNC110 - a register
                await trio.sleep(_RESET_STEP)
            return
        raise VconfsError(f"the device has not finished a reset in {_RESET_SECONDS:g} s")

    async def negotiate(self, wanted: int) -> int:
        """Negotiate features, up to FEATURES_OK."""
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
                f"the device refuses the features {features:#x} of the offered {offered:#x}"
            )
        return features

    def fail(self) -> None:
        """Tell the device that the driver has given it up."""
        self.set(Common.DEVICE_STATUS, Status.FAILED)

    def go(self) -> None:
        """Tell the device that everything is set up."""
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
        self.set(Common.DEVICE_STATUS, status)

    async def read_isr(self) -> int:
        """Read the reason for an interrupt on the line, and lower the line."""
        return await self._transport.read(self._function.isr.bar, self._function.isr.offset, 1)

    async def read_device_config(self) -> bytes:
        """Read the console's config space, all of it in one generation."""
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
        raise VconfsError("the device's config space changes all the time")

    @property
    def config_size(self) -> int:
        """The number of bytes of the console's config space."""
        return self._function.config.length

    def write_device_config(self, offset: int, data: Buffer) -> None:
        """Write 1, 2 or 4 bytes inside the console's config space."""
        region, size = self._function.config, len(data)
        value = int.from_bytes(data, "little")
        self._transport.post(region.bar, region.offset + offset, size, value)

    async def queue_size(self, queue: int) -> int:
        """Select a queue, and return the most descriptors that it may have."""
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
        """Set the vectors of config changes and of each queue. Return False if one was refused."""
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
        """Set the addresses of a queue, and enable it."""
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

"""A real virtio console of this machine, through VFIO (linux/vfio.h).

The function is bound to the kernel's driver vfio-pci, which lets us access its config space and
BARs. Interrupts come as eventfds. An IOMMU lets the device access our memory, and nothing else.

Most guests of hypervisors have no IOMMU. There, root can use VFIO's no-IOMMU mode, with memory of
huge pages: the device gets physical addresses, and could access all memory of the machine.
docs/security.md says what that means, docs/howto/qemu.md how to set it up.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import AsyncIterator, Collection, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Final

import trio
from attrs import frozen

from vconfs.device import binding
from vconfs.device._device_memory import DeviceMemory
from vconfs.device.binding import PciFunction, bound, parse_address
from vconfs.device.pci import open_pci
from vconfs.device.vfio_group import open_function, request
from vconfs.errors import VconfsError
from vconfs.link.link import OpenDevice
from vconfs.link.notifications import Notices, Told
from vconfs.protocol import virtio_pci
from vconfs.protocol.virtio_pci import Msix
from vconfs.syntax.url_options import RESIZE_OPTION, resize_rows_first, split_options
from vconfs.system.descriptors import owned
from vconfs.system.privileges import Capability
from vconfs.system.tasks import open_background

_GET_REGION_INFO: Final = request(8)
_GET_IRQ_INFO: Final = request(9)
_SET_IRQS: Final = request(10)

_REGION_MMAP: Final = 4
_CONFIG_REGION: Final = 7
_IRQ_INTX, _IRQ_MSIX, _IRQ_REQUEST = 0, 2, 4
_IRQ_DATA_NONE, _IRQ_DATA_EVENTFD = 1, 4
_IRQ_UNMASK, _IRQ_TRIGGER = 16, 32

_REGION_INFO: Final = struct.Struct("=IIIIQQ")  # argsz, flags, index, cap offset, size, offset
_IRQ_INFO: Final = struct.Struct("=IIII")  # argsz, flags, index, count
_IRQ_SET: Final = struct.Struct("=IIIII")  # argsz, flags, index, start, count; the data follow

#: The most vectors that are requested.
_VECTORS_MAX: Final = 64
_LINE: Final = -1
_REQUEST: Final = -2


class VfioTransport:
    """The way to one PCI function behind VFIO."""

    def __init__(self, device: int, memory: DeviceMemory, stack: ExitStack) -> None:
        self.memory = memory
        self._device = device
        self._stack = stack
        self._regions: dict[int, int] = {}
        #: BAR -> its memory as 16-bit words, for kicks without a system call.
        self._windows: dict[int, memoryview] = {}
        self._vectors: Told[int] = Told()
        self.interrupts: Notices[int] = Notices(self._vectors.add)
        self._is_watched = False
        self._line_masked = False

    async def read_config(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of the function's config space."""
        return int.from_bytes(self._pread(_CONFIG_REGION, offset, size), "little")

    async def read_whole_config(self) -> bytes:
        """Read the first 256 bytes of the config space."""
        return self._pread(_CONFIG_REGION, 0, virtio_pci.CONFIG_SIZE)

    async def bar_sizes(self) -> Mapping[int, int]:
        """Return the size of each memory BAR, and enable the BARs and DMA."""
        sizes = {}
        for index in range(virtio_pci.BARS):
            register = await self.read_config(virtio_pci.BAR_0 + 4 * index, 4)
            size, can_map = self._find_region(index)
            if size and not register & 1:
                sizes[index] = size
                if can_map:
                    self._map(index, size)
        command = await self.read_config(virtio_pci.COMMAND, 2)
        command |= virtio_pci.COMMAND_MEMORY | virtio_pci.COMMAND_MASTER
        command &= ~virtio_pci.COMMAND_INTX_OFF
        self._pwrite(_CONFIG_REGION, virtio_pci.COMMAND, command.to_bytes(2, "little"))
        return sizes

    def _find_region(self, index: int) -> tuple[int, bool]:
        """Store the offset of a region. Return its size, and True if it can be mapped."""
        info = bytearray(_REGION_INFO.pack(_REGION_INFO.size, 0, index, 0, 0, 0))
        try:
            fcntl.ioctl(self._device, _GET_REGION_INFO, info)
        except OSError:
            return 0, False
        _, flags, _, _, size, offset = _REGION_INFO.unpack(info)
        self._regions[index] = offset
        return size, bool(flags & _REGION_MMAP)

    def _map(self, index: int, size: int) -> None:
        try:
            window = mmap.mmap(self._device, size, offset=self._regions[index])
        except (OSError, ValueError):
            return  # kicks are written to the file instead
        self._windows[index] = memoryview(window).cast("H")
        self._stack.callback(self._unmap, index, window)

    def _unmap(self, index: int, window: mmap.mmap) -> None:
        """Unmap a BAR: until then, the kernel gives the function to no other driver."""
        self._windows.pop(index).release()
        window.close()

    async def read(self, bar: int, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of a BAR."""
        await trio.lowlevel.checkpoint()
        return int.from_bytes(self._pread(bar, offset, size), "little")

    def post(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of a BAR."""
        if size == 2 and bar in self._windows:
            self._windows[bar][offset >> 1] = value
            return
        with suppress(VconfsError):  # the next read reports it
            self._pwrite(bar, offset, value.to_bytes(size, "little"))

    def _pread(self, region: int, offset: int, size: int) -> bytes:
        if region not in self._regions:
            self._find_region(region)
        try:
            data = os.pread(self._device, size, self._regions[region] + offset)
        except (OSError, KeyError) as error:
            raise VconfsError(f"the device is gone: {error}") from None
        if len(data) != size:
            raise VconfsError(f"region {region}: only {len(data)} bytes at {offset:#x}")
        return data

    def _pwrite(self, region: int, offset: int, data: bytes) -> None:
        if region not in self._regions:
            self._find_region(region)
        try:
            os.pwrite(self._device, data, self._regions[region] + offset)
        except (OSError, KeyError) as error:
            raise VconfsError(f"the device is gone: {error}") from None

    # --- interrupts -----------------------------------------------------------------------

    async def enable_vectors(self, msix: Msix | None) -> int:
        """Enable as many MSI-X vectors as possible, or else the interrupt line."""
        if not self._is_watched:
            self._is_watched = True
            self._watch(_IRQ_REQUEST, [_REQUEST])  # not every kernel has it
        elif msix is None:
            self._set_irqs(_IRQ_MSIX, _IRQ_DATA_NONE | _IRQ_TRIGGER, 0)
        count = min(msix.vectors if msix else 0, self._irq_count(_IRQ_MSIX), _VECTORS_MAX)
        while count:
            if self._watch(_IRQ_MSIX, range(count)):
                return count
            count //= 2
        if not self._watch(_IRQ_INTX, [_LINE]):
            raise VconfsError("the device has neither MSI-X nor an interrupt line")
        return 0

    def _irq_count(self, index: int) -> int:
        info = bytearray(_IRQ_INFO.pack(_IRQ_INFO.size, 0, index, 0))
        try:
            fcntl.ioctl(self._device, _GET_IRQ_INFO, info)
        except OSError:
            return 0
        count: int = _IRQ_INFO.unpack(info)[3]
        return count

    def _watch(self, index: int, vectors: Collection[int]) -> bool:
        """Request interrupts of a kind as eventfds. Return True if the kernel agrees."""
        events = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in vectors]
        data = struct.pack(f"={len(events)}i", *events)
        if not self._set_irqs(index, _IRQ_DATA_EVENTFD | _IRQ_TRIGGER, len(events), data):
            for event in events:
                os.close(event)
            return False
        for event, vector in zip(events, vectors, strict=True):
            self.interrupts.add(self._stack.enter_context(owned(event)), vector)
        return True

    def _set_irqs(self, index: int, flags: int, count: int, data: bytes = b"") -> bool:
        header = _IRQ_SET.pack(_IRQ_SET.size + len(data), flags, index, 0, count)
        try:
            fcntl.ioctl(self._device, _SET_IRQS, header + data)
        except OSError:
            return False
        return True

    async def wait_interrupt(self) -> Collection[int]:
        """Wait for an interrupt; the kernel masks the line with each one."""
        if self._line_masked:
            self._line_masked = False
            self._set_irqs(_IRQ_INTX, _IRQ_DATA_NONE | _IRQ_UNMASK, 1)
        vectors = await self._vectors.take()
        if _REQUEST in vectors:
            raise VconfsError("the kernel wants the device back")
        self._line_masked = _LINE in vectors
        return vectors - {_LINE}


@frozen
class VfioAddress:
    """The address in a DEVICE url: `pci:ADDRESS[,resize=rows-first]`."""

    pci: str
    resize_rows_first: bool = False

    @classmethod
    def parse(cls, rest: str) -> VfioAddress:
        """Parse the url after `pci:`. Raise ValueError if it is wrong."""
        address, options = split_options("pci", rest, RESIZE_OPTION)
        return cls(parse_address(address), resize_rows_first(options))


def needed_capabilities(address: VfioAddress) -> AbstractSet[Capability]:
    """Return the capabilities that root needs to open the console, at any time."""
    if binding.lacks_iommu(address.pci):
        # For VFIO's no-IOMMU mode, and to find the physical addresses of memory.
        return {Capability.SYS_RAWIO, Capability.SYS_ADMIN}
    return {Capability.IPC_LOCK}  # the device's memory may be more than ulimit -l


@asynccontextmanager
async def open_vfio(address: VfioAddress) -> AsyncIterator[OpenDevice]:
    """Drive the virtio console at a PCI address, which must be bound to vfio-pci.

    Raise VconfsError if the device cannot be used.
    """
    function = PciFunction(address.pci)
    with ExitStack() as stack:
        transport = VfioTransport(*open_function(function, stack), stack)
        rows_first = address.resize_rows_first
        async with open_background() as nursery:
            nursery.start_soon(transport.interrupts.run)
            async with open_pci(transport, resize_rows_first=rows_first) as device:
                yield device


@asynccontextmanager
async def open_bound_vfio(address: VfioAddress) -> AsyncIterator[OpenDevice]:
    """Like `open_vfio`, but bind the console to vfio-pci while the block runs."""
    with bound(PciFunction(address.pci)):
        async with open_vfio(address) as device:
            yield device

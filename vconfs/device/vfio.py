"""A real virtio console of this machine, through VFIO (linux/vfio.h, type1v2 containers).

The function is bound to the kernel's driver vfio-pci, which lets us access its config space and
BARs. The IOMMU lets the device access our memory, and nothing else. Interrupts come as eventfds.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio
from attrs import frozen

from vconfs.device.binding import VFIO_DRIVER, PciFunction, bound, parse_address
from vconfs.device.pci import open_pci
from vconfs.errors import VconfsError
from vconfs.link.link import OpenDevice
from vconfs.link.notifications import Notices
from vconfs.protocol import virtio_pci
from vconfs.protocol.virtio_pci import Msix
from vconfs.syntax.url_options import RESIZE_OPTION, resize_rows_first, split_options
from vconfs.system.descriptors import owned

_VFIO: Final = Path("/dev/vfio")


def _request(number: int) -> int:
    return 0x3B00 | 100 + number


_GET_API_VERSION: Final = _request(0)
_CHECK_EXTENSION: Final = _request(1)
_SET_IOMMU: Final = _request(2)
_GROUP_GET_STATUS: Final = _request(3)
_GROUP_SET_CONTAINER: Final = _request(4)
_GROUP_GET_DEVICE_FD: Final = _request(6)
_GET_REGION_INFO: Final = _request(8)
_GET_IRQ_INFO: Final = _request(9)
_SET_IRQS: Final = _request(10)
_MAP_DMA: Final = _request(13)

_TYPE1V2: Final = 3
_GROUP_VIABLE: Final = 1
_MAP_READ_WRITE: Final = 3
_REGION_MMAP: Final = 4
_CONFIG_REGION: Final = 7
_IRQ_INTX, _IRQ_MSIX, _IRQ_REQUEST = 0, 2, 4
_IRQ_DATA_NONE, _IRQ_DATA_EVENTFD = 1, 4
_IRQ_UNMASK, _IRQ_TRIGGER = 16, 32

_GROUP_STATUS: Final = struct.Struct("=II")  # argsz, flags
_REGION_INFO: Final = struct.Struct("=IIIIQQ")  # argsz, flags, index, cap offset, size, offset
_IRQ_INFO: Final = struct.Struct("=IIII")  # argsz, flags, index, count
_IRQ_SET: Final = struct.Struct("=IIIII")  # argsz, flags, index, start, count; the data follow
_DMA_MAP: Final = struct.Struct("=IIQQQ")  # argsz, flags, our address, device address, size

#: The device sees our memory from here on; x86 has its interrupt window further up.
_DMA_BASE: Final = 0x10000000
_DMA_SIZE: Final = 64 << 20
#: The most vectors that are requested.
_VECTORS_MAX: Final = 64
#: Hints for a file below /dev/vfio that cannot be opened.
_HINTS: Final = {
    errno.EACCES: ": root can give it to a user by chown",
    errno.EBUSY: ": another program uses it",
    errno.ENOENT: ": is the module vfio-pci loaded?",
}
_LINE: Final = -1
_REQUEST: Final = -2


class VfioTransport:
    """The way to one PCI function behind VFIO."""

    def __init__(self, device: int, memory: memoryview, stack: ExitStack) -> None:
        self.memory = memory
        self.base = _DMA_BASE
        self._device = device
        self._stack = stack
        self._regions: dict[int, int] = {}
        #: BAR -> its memory as 16-bit words, for kicks without a system call.
        self._windows: dict[int, memoryview] = {}
        self._events: Notices[int] = Notices()
        stack.callback(self._events.close)
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
            self._events.add(self._stack.enter_context(owned(event)), vector)
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
        vectors = set(await self._events.wait())
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


@asynccontextmanager
async def open_vfio(address: VfioAddress) -> AsyncIterator[OpenDevice]:
    """Drive the virtio console at a PCI address, which must be bound to vfio-pci.

    Raise VconfsError if the device cannot be used.
    """
    function = PciFunction(address.pci)
    with ExitStack() as stack:
        transport = _open_transport(function, stack)
        rows_first = address.resize_rows_first
        async with open_pci(transport, resize_rows_first=rows_first) as device:
            yield device


@asynccontextmanager
async def open_bound_vfio(address: VfioAddress) -> AsyncIterator[OpenDevice]:
    """Like `open_vfio`, but bind the console to vfio-pci while the block runs."""
    with bound(PciFunction(address.pci)):
        async with open_vfio(address) as device:
            yield device


def _open_transport(function: PciFunction, stack: ExitStack) -> VfioTransport:
    function.check_console()
    group_name = function.group
    if function.driver != VFIO_DRIVER:
        owner = function.driver or "no driver"
        raise VconfsError(
            f"{function.address} belongs to {owner}, not to {VFIO_DRIVER}:"
            f" use --bind, or `vconfs bind {function.address}`"
        )
    container = _open(_VFIO / "vfio", stack)
    group = _open(_VFIO / group_name, stack)
    try:
        _join(container, group, function)
        name = bytearray(function.address.encode() + b"\0")
        device = fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, name)
    except OSError as error:
        raise VconfsError(f"cannot open {function.address} by VFIO: {error.strerror}") from None
    stack.enter_context(owned(device))
    return VfioTransport(device, _map_memory(container, stack), stack)


def _open(path: Path, stack: ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "")
        raise VconfsError(f"cannot open {path}: {error.strerror}{hint}") from None
    return stack.enter_context(owned(descriptor))


def _join(container: int, group: int, function: PciFunction) -> None:
    if fcntl.ioctl(container, _GET_API_VERSION) != 0:
        raise VconfsError("the kernel has another version of VFIO")
    if not fcntl.ioctl(container, _CHECK_EXTENSION, _TYPE1V2):
        raise VconfsError("the kernel's VFIO has no type1v2 IOMMU")
    status = bytearray(_GROUP_STATUS.pack(_GROUP_STATUS.size, 0))
    fcntl.ioctl(group, _GROUP_GET_STATUS, status)
    if not _GROUP_STATUS.unpack(status)[1] & _GROUP_VIABLE:
        function.check_group()
        raise VconfsError(f"the IOMMU group of {function.address} is not viable")
    fcntl.ioctl(group, _GROUP_SET_CONTAINER, struct.pack("=i", container))
    fcntl.ioctl(container, _SET_IOMMU, _TYPE1V2)


def _map_memory(container: int, stack: ExitStack) -> memoryview:
    """Return memory that the device can access at _DMA_BASE; its pages are freed at the end."""
    memory = mmap.mmap(-1, _DMA_SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    request = _DMA_MAP.pack(_DMA_MAP.size, _MAP_READ_WRITE, address, _DMA_BASE, _DMA_SIZE)
    try:
        fcntl.ioctl(container, _MAP_DMA, request)
    except OSError as error:
        hint = " (see ulimit -l)" if error.errno == errno.ENOMEM else ""
        raise VconfsError(
            f"cannot give the device {_DMA_SIZE >> 20} MiB of memory: {error.strerror}{hint}"
        ) from None
    stack.callback(memory.madvise, mmap.MADV_DONTNEED)
    return memoryview(memory)

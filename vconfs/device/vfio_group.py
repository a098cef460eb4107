"""Opening a PCI function by VFIO: its group, a container for the group, and memory for the device.

Through an IOMMU (type1v2), the device gets addresses for our memory, and the kernel pins its pages
until the container is closed.

In the no-IOMMU mode, the kernel neither maps nor pins memory, so it is of huge pages. It is removed
after the device is closed: then the kernel turns off the function's DMA (bus mastering), and resets
the function if it can. It does so however the process ends, and again when the device is opened.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from vconfs.device._device_memory import DeviceMemory, find_runs
from vconfs.device.binding import VFIO_DRIVER, PciFunction
from vconfs.errors import VconfsError
from vconfs.system import huge_pages
from vconfs.system.descriptors import owned

log: Final = logging.getLogger(__name__)

_VFIO: Final = Path("/dev/vfio")


def request(number: int) -> int:
    """Return the number of an ioctl of VFIO."""
    return 0x3B00 | 100 + number


_GET_API_VERSION: Final = request(0)
_CHECK_EXTENSION: Final = request(1)
_SET_IOMMU: Final = request(2)
_GROUP_GET_STATUS: Final = request(3)
_GROUP_SET_CONTAINER: Final = request(4)
_GROUP_GET_DEVICE_FD: Final = request(6)
_MAP_DMA: Final = request(13)

_TYPE1V2: Final = 3
_NOIOMMU: Final = 8
_GROUP_VIABLE: Final = 1
_MAP_READ_WRITE: Final = 3

_GROUP_STATUS: Final = struct.Struct("=II")  # argsz, flags
_DMA_MAP: Final = struct.Struct("=IIQQQ")  # argsz, flags, our address, device address, size

#: The device sees our memory from here on; x86 has its interrupt window further up.
_DMA_BASE: Final = 0x10000000
_DMA_SIZE: Final = 64 << 20
#: Hints for a file below /dev/vfio that cannot be opened.
_HINTS: Final = {
    errno.EACCES: ": root can give it to a user by chown",
    errno.EBUSY: ": another program uses it",
    errno.ENOENT: ": is the module vfio-pci loaded?",
    errno.EPERM: ": only root can, with CAP_SYS_RAWIO",
}


def open_function(function: PciFunction, stack: ExitStack) -> tuple[int, DeviceMemory]:
    """Open a console that is bound to vfio-pci. Return its descriptor, and memory for it.

    Both are closed with the stack. Raise VconfsError if the console cannot be used.
    """
    function.check_console()
    function.check_iommu()
    if function.driver != VFIO_DRIVER:
        owner = function.driver or "no driver"
        raise VconfsError(
            f"{function.address} belongs to {owner}, not to {VFIO_DRIVER}:"
            f" use --bind, or `vconfs bind {function.address}`"
        )
    if not function.has_iommu and os.geteuid() != 0:
        raise VconfsError(f"{function.address} has no IOMMU: only root can drive it")
    container = _open(_VFIO / "vfio", stack)
    group = _open(_VFIO / function.group, stack)
    kept = stack.enter_context(ExitStack())  # what is closed after the device
    try:
        _join(container, group, function)
        name = bytearray(function.address.encode() + b"\0")
        device = fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, name)
    except OSError as error:
        raise VconfsError(f"cannot open {function.address} by VFIO: {error.strerror}") from None
    stack.enter_context(owned(device))
    if function.has_iommu:
        return device, DeviceMemory.at(_map_memory(container, stack), _DMA_BASE)
    return device, _find_memory(function, kept)


def remove_memory(function: PciFunction) -> None:
    """Remove the memory that is left if a process was killed while it drove the console."""
    for path in huge_pages.find_places(_file_name(function)):
        huge_pages.remove(path)


def _file_name(function: PciFunction) -> str:
    return f"vconfs-{function.address}"


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
    kind, name = (_TYPE1V2, "type1v2 IOMMU") if function.has_iommu else (_NOIOMMU, "no-IOMMU mode")
    if not fcntl.ioctl(container, _CHECK_EXTENSION, kind):
        raise VconfsError(f"the kernel's VFIO has no {name}")
    status = bytearray(_GROUP_STATUS.pack(_GROUP_STATUS.size, 0))
    fcntl.ioctl(group, _GROUP_GET_STATUS, status)
    if not _GROUP_STATUS.unpack(status)[1] & _GROUP_VIABLE:
        function.check_group()
        raise VconfsError(f"the IOMMU group of {function.address} is not viable")
    fcntl.ioctl(group, _GROUP_SET_CONTAINER, struct.pack("=i", container))
    fcntl.ioctl(container, _SET_IOMMU, kind)


def _map_memory(container: int, stack: ExitStack) -> memoryview:
    """Return memory that the device can access at _DMA_BASE; its pages are freed at the end."""
    memory = mmap.mmap(-1, _DMA_SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mapping = _DMA_MAP.pack(_DMA_MAP.size, _MAP_READ_WRITE, address, _DMA_BASE, _DMA_SIZE)
    try:
        fcntl.ioctl(container, _MAP_DMA, mapping)
    except OSError as error:
        hint = " (see ulimit -l)" if error.errno == errno.ENOMEM else ""
        raise VconfsError(
            f"cannot give the device {_DMA_SIZE >> 20} MiB of memory: {error.strerror}{hint}"
        ) from None
    stack.callback(memory.madvise, mmap.MADV_DONTNEED)
    return memoryview(memory)


def _find_memory(function: PciFunction, stack: ExitStack) -> DeviceMemory:
    """Return memory of huge pages, which the device can access like all other memory."""
    path = huge_pages.find_place(_file_name(function))
    pages = huge_pages.allocate(path, _DMA_SIZE, stack)
    log.warning(
        "%s has no IOMMU: it can access all memory of this machine, not only what vconfs gives it",
        function.address,
    )
    runs = find_runs(pages.addresses, pages.page_size)
    return DeviceMemory(pages.view, runs, f"as root: {huge_pages.PAGES_COMMAND}")

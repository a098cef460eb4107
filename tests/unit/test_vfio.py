"""The VFIO transport on a file that stands for the device, with the kernel's answers scripted."""

from __future__ import annotations

import errno
import gc
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.unit.test_virtio_pci import REAL
from vconfs.device import vfio
from vconfs.device.errors import DeviceError
from vconfs.device.vfio import VfioTransport
from vconfs.protocol.virtio_pci import Msix, Region

REGION = 1 << 16  # region N of the device begins here in the file, times N
CONFIG = 7
MSIX = Msix(0x98, 2, Region(1, 0, 32))


class Kernel:
    """Answers ioctls on the device."""

    def __init__(self) -> None:
        self.regions = {1: (4096, 0), 4: (16384, 4), CONFIG: (256, 0)}  # size, flags: 4 is mmap
        self.irqs = {0: 1, 2: 2, 4: 1}  # index -> how many; those that eventfds may be set for
        self.most_vectors = 64
        self.eventfds: dict[int, list[int]] = {}
        self.unmasked = 0

    def ioctl(self, fd: int, request: int, argument: bytearray) -> int:
        match request:
            case vfio._GET_REGION_INFO:
                index = struct.unpack_from("=I", argument, 8)[0]
                if index not in self.regions:
                    raise OSError(errno.EINVAL, "no such region")
                size, flags = self.regions[index]
                struct.pack_into("=IIIIQQ", argument, 0, 32, flags, index, 0, size, index * REGION)
            case vfio._GET_IRQ_INFO:
                index = struct.unpack_from("=I", argument, 8)[0]
                struct.pack_into("=I", argument, 12, self.irqs.get(index, 0))
            case vfio._SET_IRQS:
                self._set_irqs(bytes(argument))
        return 0

    def _set_irqs(self, argument: bytes) -> None:
        size, flags, index, start, count = struct.unpack_from("=5I", argument)
        assert size == len(argument)
        assert start == 0
        if index not in self.irqs or count > self.most_vectors:
            raise OSError(errno.ENOSPC, "no more vectors")
        if flags & 16:
            self.unmasked += 1
        else:
            self.eventfds[index] = list(struct.unpack_from(f"={count}i", argument, 20))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr("fcntl.ioctl", kernel.ioctl)
    return kernel


@pytest.fixture
def device(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "device"
    config = bytearray(REAL)
    struct.pack_into("<H", config, 4, 1 << 10)  # the interrupt line is off
    struct.pack_into("<I", config, 0x18, 0xE001)  # BAR 2 is of I/O ports
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, 8 * REGION)
    os.pwrite(descriptor, config, CONFIG * REGION)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def transport(kernel: Kernel, device: int) -> Iterator[VfioTransport]:
    with ExitStack() as stack:
        yield VfioTransport(device, memoryview(bytearray(4096)), stack)


async def test_config_space_and_bars(kernel: Kernel, device: int, transport: VfioTransport) -> None:
    kernel.regions[2] = (64, 0)
    assert (await transport.read_whole_config())[:4] == REAL[:4]
    assert await transport.read_config(2, 2) == 0x1043
    assert await transport.bar_sizes() == {1: 4096, 4: 16384}
    assert await transport.read_config(4, 2) == 6  # memory and DMA, and the line is not off
    transport.post(4, 0x14, 1, 15)
    assert await transport.read(4, 0x14, 1) == 15
    transport.post(4, 0x3004, 2, 0x1234)  # a kick, through the mapping
    assert os.pread(device, 2, 4 * REGION + 0x3004) == b"\x34\x12"
    transport.post(1, 0x10, 2, 7)  # a BAR that cannot be mapped
    assert await transport.read(1, 0x10, 2) == 7


@pytest.mark.parametrize(
    ("most", "expected"), [(64, 2), (1, 1), (0, 0)], ids=["all", "fewer", "the line"]
)
async def test_vectors(kernel: Kernel, transport: VfioTransport, most: int, expected: int) -> None:
    kernel.most_vectors = most or 1
    if not most:
        del kernel.irqs[2]
    assert await transport.enable_vectors(MSIX) == expected


async def test_a_device_without_interrupts(kernel: Kernel, transport: VfioTransport) -> None:
    kernel.irqs.clear()
    with pytest.raises(DeviceError, match="neither MSI-X nor an interrupt line"):
        await transport.enable_vectors(MSIX)


async def test_interrupts_by_vector(kernel: Kernel, transport: VfioTransport) -> None:
    assert await transport.enable_vectors(MSIX) == 2
    config, queues = kernel.eventfds[2]
    os.eventfd_write(queues, 3)
    assert await transport.wait_interrupt() == {1}
    os.eventfd_write(config, 1)
    os.eventfd_write(queues, 1)
    assert await transport.wait_interrupt() == {0, 1}
    assert await woken_by(transport, lambda: os.eventfd_write(config, 1)) == {0}


async def woken_by(transport: VfioTransport, cause: Callable[[], None]) -> set[int]:
    got: list[set[int]] = []

    async def wait() -> None:
        got.append(set(await transport.wait_interrupt()))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not got
            cause()
    return got[0]


async def test_the_line_is_unmasked_after_each_interrupt(
    kernel: Kernel, transport: VfioTransport
) -> None:
    assert await transport.enable_vectors(None) == 0
    (line,) = kernel.eventfds[0]
    for round in range(3):
        os.eventfd_write(line, 1)
        assert await transport.wait_interrupt() == set()
        assert kernel.unmasked == round


async def test_the_kernel_wants_the_device_back(kernel: Kernel, transport: VfioTransport) -> None:
    await transport.enable_vectors(MSIX)
    os.eventfd_write(kernel.eventfds[4][0], 1)
    with pytest.raises(DeviceError, match="wants the device back"):
        await transport.wait_interrupt()


async def test_a_device_that_is_gone(kernel: Kernel, transport: VfioTransport) -> None:
    del kernel.regions[CONFIG]
    with pytest.raises(DeviceError, match="the device is gone"):
        await transport.read_whole_config()
    transport.post(3, 0, 1, 0)  # harmless
    with pytest.raises(DeviceError, match="region 4: only 0 bytes"):
        await transport.read(4, 1 << 30, 4)


def test_nothing_is_left_open(kernel: Kernel, device: int) -> None:
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with ExitStack() as stack:
            transport = VfioTransport(device, memoryview(b""), stack)
            trio.run(transport.bar_sizes)
            trio.run(transport.enable_vectors, MSIX)
    assert len(os.listdir("/proc/self/fd")) == before

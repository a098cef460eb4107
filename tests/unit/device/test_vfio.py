"""The VFIO transport on a file in place of the device, with scripted answers of the kernel."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.unit.device.fake_sysfs import CONSOLE, OTHER, give, make_sysfs, take_iommu_away
from tests.unit.protocol.test_virtio_pci import REAL
from vconfs.device import binding, vfio, vfio_group
from vconfs.device._device_memory import DeviceMemory
from vconfs.device.binding import PciFunction
from vconfs.device.vfio import VfioAddress, VfioTransport, needed_capabilities, open_vfio
from vconfs.device.vfio_group import open_function, remove_memory
from vconfs.errors import VconfsError
from vconfs.guest.driver import drive
from vconfs.guest.ports import PortManager
from vconfs.protocol.virtio_pci import Msix, Region
from vconfs.system import huge_pages
from vconfs.system.mountinfo import Mounted
from vconfs.system.privileges import Capability

REGION = 1 << 16  # region N of the device begins here in the file, times N
CONFIG = 7
MSIX = Msix(0x98, 2, Region(1, 0, 32))


class Kernel:
    """Answers ioctls on the device, its group and their container."""

    def __init__(self) -> None:
        self.regions = {1: (4096, 0), 4: (16384, 4), CONFIG: (256, 0)}  # size, flags: 4 is mmap
        self.irqs = {0: 1, 2: 2, 4: 1}  # index -> how many; those that eventfds may be set for
        self.most_vectors = 64
        self.eventfds: dict[int, list[int]] = {}
        self.unmasked = 0
        self.version, self.viable = 0, 1
        self.kind = 3  # of IOMMU: type1v2
        self.device = self.opened = -1
        self.refused: dict[int, int] = {}  # request -> errno

    def ioctl(self, fd: int, request: int, argument: Any = None) -> int:
        if request in self.refused:
            raise OSError(self.refused[request], os.strerror(self.refused[request]))
        match request:
            case vfio_group._GET_API_VERSION:
                return self.version
            case vfio_group._CHECK_EXTENSION:
                return int(argument == self.kind)
            case vfio_group._SET_IOMMU:
                assert argument == self.kind
            case vfio_group._GROUP_GET_STATUS:
                struct.pack_into("=I", argument, 4, self.viable)
            case vfio_group._GROUP_GET_DEVICE_FD:
                assert bytes(argument) == CONSOLE.encode() + b"\0"
                self.opened = os.dup(self.device)
                return self.opened
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
async def transport(
    kernel: Kernel, device: int, nursery: trio.Nursery
) -> AsyncIterator[VfioTransport]:
    with ExitStack() as stack:
        it = VfioTransport(device, DeviceMemory.at(memoryview(bytearray(4096))), stack)
        nursery.start_soon(it.interrupts.run)
        yield it


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
    with pytest.raises(VconfsError, match="neither MSI-X nor an interrupt line"):
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

    with trio.fail_after(20):
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
    with pytest.raises(VconfsError, match="wants the device back"):
        await transport.wait_interrupt()


async def test_a_device_that_is_gone(kernel: Kernel, transport: VfioTransport) -> None:
    del kernel.regions[CONFIG]
    with pytest.raises(VconfsError, match="the device is gone"):
        await transport.read_whole_config()
    transport.post(3, 0, 1, 0)  # harmless
    with pytest.raises(VconfsError, match="region 4: only 0 bytes"):
        await transport.read(4, 1 << 30, 4)


def test_nothing_is_left_open(kernel: Kernel, device: int) -> None:
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with ExitStack() as stack:
            transport = VfioTransport(device, DeviceMemory.at(memoryview(b"")), stack)
            trio.run(transport.bar_sizes)
            trio.run(transport.enable_vectors, MSIX)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_vectors_are_turned_off_for_the_line(
    kernel: Kernel, transport: VfioTransport
) -> None:
    assert await transport.enable_vectors(MSIX) == 2
    assert await transport.enable_vectors(None) == 0
    assert kernel.eventfds[2] == []
    (line,) = kernel.eventfds[0]
    os.eventfd_write(line, 1)
    assert await transport.wait_interrupt() == set()


# --- opening ------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, kernel: Kernel, device: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine where vfio-pci has the console; its /sys, and beside it its /dev/vfio."""
    sysfs = make_sysfs(tmp_path / "sys")
    give(sysfs, CONSOLE, "vfio-pci")
    nodes = tmp_path / "vfio"
    nodes.mkdir()
    for name in ("vfio", "3"):
        (nodes / name).write_bytes(b"")
    monkeypatch.setattr(binding, "SYSFS", sysfs)
    monkeypatch.setattr(vfio_group, "_VFIO", nodes)
    kernel.device = device
    return sysfs


async def refusal(address: str = CONSOLE) -> str:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(VconfsError) as caught:
        async with drive(PortManager(), open_vfio(VfioAddress(address))):
            raise AssertionError
    assert len(os.listdir("/proc/self/fd")) == before
    return str(caught.value)


async def test_a_machine_that_is_set_up(machine: Path) -> None:
    """The registers of the file are all zeros, and so it gets as far as the features."""
    message = await refusal()
    assert message == "the device does not offer VERSION_1: it is a legacy device"


async def test_a_wrong_address(machine: Path) -> None:
    message = await refusal("0000:00:09.0")
    assert message == "there is no PCI function 0000:00:09.0; virtio consoles: 0000:00:05.0"
    message = await refusal(OTHER)
    assert message == "0000:00:06.0 is not a virtio console; virtio consoles: 0000:00:05.0"


@pytest.mark.parametrize(("driver", "owner"), [("virtio-pci", "virtio-pci"), ("", "no driver")])
async def test_another_driver_has_it(machine: Path, driver: str, owner: str) -> None:
    (machine / "bus/pci/devices" / CONSOLE / "driver").unlink()
    if driver:
        give(machine, CONSOLE, driver)
    message = await refusal()
    assert message == (
        f"0000:00:05.0 belongs to {owner}, not to vfio-pci:"
        " use --bind, or `vconfs bind 0000:00:05.0`"
    )


@pytest.mark.parametrize("name", ["vfio", "3"])
@pytest.mark.parametrize(
    ("code", "end"),
    [
        (errno.EACCES, "Permission denied: root can give it to a user by chown"),
        (errno.EBUSY, "Device or resource busy: another program uses it"),
        (errno.ENOENT, "No such file or directory: is the module vfio-pci loaded?"),
        (errno.EMFILE, "Too many open files"),
    ],
)
async def test_a_node_that_cannot_be_opened(
    machine: Path, name: str, code: int, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, open_ = vfio_group._VFIO / name, os.open

    def refuse(wanted: Path | str, flags: int, mode: int = 0o777) -> int:
        if wanted == path:
            raise OSError(code, os.strerror(code))
        return open_(wanted, flags, mode)

    monkeypatch.setattr("os.open", refuse)
    assert await refusal() == f"cannot open {path}: {end}"


async def test_the_kernel_has_another_vfio(machine: Path, kernel: Kernel) -> None:
    kernel.kind = 8
    assert await refusal() == "the kernel's VFIO has no type1v2 IOMMU"
    kernel.version = 1
    assert await refusal() == "the kernel has another version of VFIO"


async def test_no_iommu(machine: Path) -> None:
    take_iommu_away(machine, mode="N")
    message = await refusal()
    assert message.startswith("0000:00:05.0 has no IOMMU: boot with intel_iommu=on")
    switch = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
    assert message.endswith(f"; as root: echo Y >{machine}{switch.removeprefix('/sys')}")


async def test_a_group_that_is_not_viable(machine: Path, kernel: Kernel) -> None:
    kernel.viable = 0
    assert await refusal() == "the IOMMU group of 0000:00:05.0 is not viable"
    give(machine, OTHER, "virtio-pci")
    assert (await refusal()).endswith("is not viable: drivers have 0000:00:06.0 (virtio-pci)")


@pytest.mark.parametrize(
    ("request_number", "code", "message"),
    [
        (
            vfio_group._MAP_DMA,
            errno.ENOMEM,
            "cannot give the device 64 MiB of memory: Cannot allocate memory (see ulimit -l)",
        ),
        (
            vfio_group._MAP_DMA,
            errno.EEXIST,
            "cannot give the device 64 MiB of memory: File exists",
        ),
        (
            vfio_group._GROUP_SET_CONTAINER,
            errno.EPERM,
            "cannot open 0000:00:05.0 by VFIO: Operation not permitted",
        ),
        (
            vfio_group._SET_IOMMU,
            errno.ENODEV,
            "cannot open 0000:00:05.0 by VFIO: No such device",
        ),
        (
            vfio_group._GROUP_GET_DEVICE_FD,
            errno.EBUSY,
            "cannot open 0000:00:05.0 by VFIO: Device or resource busy",
        ),
    ],
)
async def test_a_request_that_the_kernel_refuses(
    machine: Path, kernel: Kernel, request_number: int, code: int, message: str
) -> None:
    kernel.refused = {request_number: code}
    assert await refusal() == message


# --- without an IOMMU ---------------------------------------------------------------------


@pytest.fixture
def bare(machine: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That machine without an IOMMU, and with VFIO's no-IOMMU mode. Return its hugetlbfs."""
    take_iommu_away(machine, mode="Y")
    (vfio_group._VFIO / "3").rename(vfio_group._VFIO / "noiommu-3")
    folder = machine.parent / "hugepages"
    folder.mkdir()
    mounted = Mounted("0:1", os.fsencode(folder), "hugetlbfs")
    monkeypatch.setattr(huge_pages, "read_mounts", lambda: [mounted])
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(vfio_group, "_DMA_SIZE", 4 * mmap.PAGESIZE)
    numbers = iter((9, 8, 4, 5))
    monkeypatch.setattr(
        huge_pages, "_find_physical", lambda starts: [next(numbers) * mmap.PAGESIZE for _ in starts]
    )
    kernel.kind = 8
    return folder


WARNING = "has no IOMMU: it can access all memory of this machine"


@pytest.mark.expect_log(WARNING)
def test_the_memory_has_physical_addresses(
    bare: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crash left is removed when the device is open, and ours when it is closed."""
    was_open = []
    remove = huge_pages.remove

    def remove_and_note(path: Path) -> None:
        was_open.append(Path(f"/proc/self/fd/{kernel.opened}").exists())
        remove(path)

    monkeypatch.setattr(huge_pages, "remove", remove_and_note)
    (bare / f"vconfs-{CONSOLE}").write_bytes(b"left by a crash")
    with ExitStack() as stack:
        _, memory = open_function(PciFunction(CONSOLE), stack)
        page = mmap.PAGESIZE
        assert [run.address // page for run in memory.runs] == [9, 8, 4]
        assert [run.size // page for run in memory.runs] == [1, 1, 2]
        assert len(memory.view) == 4 * page
        assert [path.name for path in bare.iterdir()] == [f"vconfs-{CONSOLE}"]
    assert not list(bare.iterdir())
    assert was_open == [True, False]


async def test_only_root_drives_it_without_an_iommu(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert await refusal() == "0000:00:05.0 has no IOMMU: only root can drive it"


async def test_without_an_iommu_there_is_no_memory(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    assert (await refusal()).startswith("no huge page is free; as root: echo 32 >")
    assert not list(bare.iterdir())
    bare.rmdir()
    monkeypatch.setattr(huge_pages, "read_mounts", list)
    assert (await refusal()).startswith("no hugetlbfs is mounted, for huge pages; as root: ")


async def test_a_kernel_without_the_mode(bare: Path, kernel: Kernel) -> None:
    kernel.kind = 3
    assert await refusal() == "the kernel's VFIO has no no-IOMMU mode"


def test_what_a_killed_daemon_left_is_removed_by_unbind(bare: Path) -> None:
    (bare / f"vconfs-{CONSOLE}").touch()
    (bare / "another").touch()
    remove_memory(PciFunction(CONSOLE))
    assert [path.name for path in bare.iterdir()] == ["another"]


def test_the_capabilities_that_root_needs(machine: Path) -> None:
    address = VfioAddress(CONSOLE)
    assert needed_capabilities(address) == {Capability.IPC_LOCK}
    take_iommu_away(machine, mode="Y")
    assert needed_capabilities(address) == {Capability.SYS_RAWIO, Capability.SYS_ADMIN}
    assert needed_capabilities(VfioAddress("0000:00:09.0")) == needed_capabilities(address)

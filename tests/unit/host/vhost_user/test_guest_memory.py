"""The memory that a front-end shares: what is taken of it, and what is refused with which line."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.support.waiting import until
from vconfs.host.vhost_user._memory import SharedMemory
from vconfs.host.vhost_user.address import VhostUserAddress
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import Region

SIZE = 1 << 20
REGION = Region(0x1000_0000, SIZE, 0x7F00_0000_0000)
WHERE = "the region at guest 0x10000000"


def memory(flags: int = os.MFD_ALLOW_SEALING, size: int = SIZE) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | flags)
    os.ftruncate(fd, size)
    return fd


def sealed() -> int:
    fd = memory()
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def on_tmpfs() -> int:
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
    os.ftruncate(fd, SIZE)
    return fd


async def refusal(fd: int, **options: bool) -> str:
    """Share memory that is not taken; return why."""
    shared = SharedMemory(**options)
    with pytest.raises(RemoteProtocolError) as caught:
        await shared.replace([REGION], [fd])
    with pytest.raises(RemoteProtocolError):
        shared.guest.view(REGION.guest_addr, 1)
    return str(caught.value)


@pytest.mark.parametrize("make", [memory, sealed, on_tmpfs, lambda: memory(0)])
async def test_memory_of_each_kind_is_taken_and_its_descriptor_closed(
    make: Callable[[], int],
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fd, shared = make(), SharedMemory()
    await shared.add(REGION, fd)
    shared.guest.view(REGION.guest_addr, 4)[:] = b"here"
    shared.clear()
    # The thread has it a little longer.
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_memory_that_can_be_sealed_is_sealed() -> None:
    fd = memory()
    await SharedMemory(require_seals=True).replace([REGION], [os.dup(fd)])
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


@pytest.mark.parametrize("make", [on_tmpfs, lambda: memory(0)], ids=["tmpfs", "memfd"])
async def test_memory_that_can_shrink_is_refused_where_seals_are_required(
    make: Callable[[], int],
) -> None:
    said = await refusal(make(), require_seals=True)
    assert said == f"{WHERE} is in a file that can shrink (require-seals)"


async def test_a_file_on_a_disk_is_refused() -> None:
    with tempfile.TemporaryFile(dir=Path.home()) as file:
        file.truncate(SIZE)
        said = await refusal(os.dup(file.fileno()))
    way_out = "share a memfd, or a file on tmpfs or hugetlbfs"
    assert said == f"{WHERE} is not in a file in memory: {way_out}"


async def test_a_file_that_is_too_short_is_refused() -> None:
    assert await refusal(memory(size=4096)) == f"{WHERE} ends at 0x100000 of a file of 0x1000"


async def test_a_file_that_is_cut_after_its_size_was_seen_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fd = memory(0)
    look = os.fstat

    def fstat_and_cut(which: int) -> os.stat_result:
        status = look(which)
        os.ftruncate(which, 4096)
        return status

    monkeypatch.setattr("os.fstat", fstat_and_cut)
    said = await refusal(fd)
    assert said == f"{WHERE} cannot be mapped: mmap length is greater than file size"


async def test_locked_memory_blocks_no_task(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """A process that writes to it from memory which is not there keeps the file locked."""
    locked = trio.Event()

    async def never(*args: object, **options: object) -> None:
        locked.set()
        await trio.sleep_forever()

    monkeypatch.setattr(trio.to_thread, "run_sync", never)
    assert await refusal(memory()) == f"{WHERE} is kept locked"
    assert locked.is_set()


def test_the_option_is_read() -> None:
    assert VhostUserAddress.parse("/path,require-seals").require_seals
    assert VhostUserAddress.parse("/path,inband,require-seals").inband
    assert not VhostUserAddress.parse("/path").require_seals
    with pytest.raises(ValueError, match="require-seals is given twice"):
        VhostUserAddress.parse("/path,require-seals,require-seals")

"""A file of huge pages, on a file system of ordinary ones, and with a fake of pagemap."""

from __future__ import annotations

import ctypes
import errno
import io
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vconfs.errors import VconfsError
from vconfs.system import huge_pages
from vconfs.system.huge_pages import allocate, find_place, parse_entry
from vconfs.system.mountinfo import Mounted

PAGE = mmap.PAGESIZE
PRESENT = 1 << 63


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        (PRESENT | 5, 5 * PAGE),
        (PRESENT | 1 << 61 | 1 << 55 | (1 << 55) - 1, ((1 << 55) - 1) * PAGE),  # file page, dirty
    ],
)
def test_entries_of_pagemap(entry: int, address: int) -> None:
    assert parse_entry(struct.pack("=Q", entry)) == address


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (struct.pack("=Q", PRESENT), "hides physical addresses .* only root .* CAP_SYS_ADMIN"),
        (struct.pack("=Q", 5), "not in memory"),  # bit 63 is off: 5 is about swap
        (b"", "not in memory"),
        (bytes(7), "not in memory"),
    ],
)
def test_entries_without_an_address(entry: bytes, message: str) -> None:
    with pytest.raises(VconfsError, match=message):
        parse_entry(entry)


class Pagemap(io.BytesIO):
    """Has each page at its virtual address, negated."""

    def open(self, mode: str, buffering: int) -> Pagemap:
        assert (mode, buffering) == ("rb", 0)
        return Pagemap()

    def read(self, size: int | None = -1) -> bytes:
        assert size == 8
        return struct.pack("=Q", PRESENT | (1 << 40) - self.tell() // 8)


@pytest.fixture(autouse=True)
def _pagemap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_PAGEMAP", Pagemap())


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def pages_left(count: int, code: int = errno.ENOSPC) -> Callable[[int, int, int], None]:
    """Return a posix_fallocate of a file system with that many pages."""

    def fallocate(descriptor: int, offset: int, size: int) -> None:
        if offset // size >= count:
            raise OSError(code, os.strerror(code))
        os.ftruncate(descriptor, offset + size)

    return fallocate


@pytest.mark.parametrize(("there", "expected"), [(9, 4), (3, 3)])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
def test_as_many_pages_as_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, expected: int, code: int
) -> None:
    monkeypatch.setattr("os.posix_fallocate", pages_left(there, code))
    path = tmp_path / "file"
    before = len(os.listdir("/proc/self/fd"))
    with ExitStack() as stack:
        pages = allocate(path, 4 * PAGE, stack)
        assert pages.page_size == PAGE
        assert len(pages.view) == path.stat().st_size == expected * PAGE
        assert path.stat().st_mode & 0o777 == 0o600
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages.view)) // PAGE
        assert pages.addresses == [((1 << 40) - start - n) * PAGE for n in range(expected)]
        pages.view[-1] = 7
        assert path.read_bytes()[-1] == 7
        assert str(path) in Path("/proc/self/maps").read_text()
    assert not path.exists()
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert len(os.listdir("/proc/self/fd")) == before
    assert pages.view.tobytes() == bytes(expected * PAGE)  # readers may still have it


def test_what_a_killed_process_left_is_replaced(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    old = path.stat().st_ino
    with path.open("rb"):
        pages = allocate(path, PAGE, stack)
        assert path.stat().st_ino != old
    assert pages.view[:3].tobytes() == bytes(3)


def test_no_page_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    monkeypatch.setattr("os.posix_fallocate", pages_left(0))
    with pytest.raises(VconfsError) as caught:
        allocate(tmp_path / "file", PAGE, stack)
    assert str(caught.value) == (
        "no huge page is free; as root: echo 32 >/proc/sys/vm/nr_hugepages"
    )
    stack.close()
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    with pytest.raises(VconfsError, match=r"huge pages in .*/gone/file: No such file or directory"):
        allocate(tmp_path / "gone/file", PAGE, stack)
    monkeypatch.setattr("os.posix_fallocate", pages_left(0, errno.EIO))
    with pytest.raises(VconfsError, match=r"huge pages in .*/file: Input/output error"):
        allocate(tmp_path / "file", PAGE, stack)


def test_the_smallest_pages_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {b"/mnt/1G": 1 << 30, b"/mnt/2M": 2 << 20, b"/": 4096}
    mounts = [Mounted("0:1", place, "ext4" if place == b"/" else "hugetlbfs") for place in sizes]
    monkeypatch.setattr(huge_pages, "read_mounts", lambda: mounts)
    monkeypatch.setattr(huge_pages, "_page_size", lambda path: sizes[os.fsencode(path.parent)])
    assert find_place("name") == Path("/mnt/2M/name")


def test_no_hugetlbfs_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "read_mounts", list)
    with pytest.raises(VconfsError) as caught:
        find_place("name")
    assert str(caught.value).endswith(
        "; as root: mkdir -p /dev/hugepages; mount -t hugetlbfs none /dev/hugepages"
    )

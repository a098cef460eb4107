"""The memory that a front-end shares with a back-end, and its two kinds of addresses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import frozen

from vconfs.protocol._vhost_user_messages import REGION
from vconfs.protocol.errors import RemoteProtocolError

_ADDRESSES: Final = 1 << 64
_FILE_MAX: Final = 1 << 63


@frozen
class Region:
    """A part of the memory.

    `guest_addr` is its address in ring descriptors, `user_addr` its address in the front-end's own
    memory, `mmap_offset` its offset in the file of its file descriptor.
    """

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int = 0

    @classmethod
    def unpack(cls, data: bytes, offset: int = 0) -> Region:
        """Parse a region description."""
        return cls(*REGION.unpack_from(data, offset))

    def pack(self) -> bytes:
        """Return the region description."""
        return REGION.pack(self.guest_addr, self.size, self.user_addr, self.mmap_offset)

    def is_same(self, other: Region) -> bool:
        """True if REM_MEM_REG of `other` means this region; the offset is not compared."""
        return (self.guest_addr, self.size, self.user_addr) == (
            other.guest_addr,
            other.size,
            other.user_addr,
        )


class AddressTable:
    """An immutable table of all regions.

    Raise RemoteProtocolError if a region is empty, passes the end of its addresses or of any file,
    or overlaps another one in either kind of address.
    """

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        self.regions: tuple[Region, ...] = tuple(regions)
        for region in self.regions:
            _check(region)
        _check_overlap([(r.guest_addr, r.size) for r in self.regions], "guest")
        _check_overlap([(r.user_addr, r.size) for r in self.regions], "user")

    def added(self, region: Region) -> AddressTable:
        """Return a table with one more region."""
        return AddressTable((*self.regions, region))

    def removed(self, region: Region) -> AddressTable:
        """Return a table without a region. Raise RemoteProtocolError if it is not in this one."""
        left = [r for r in self.regions if not r.is_same(region)]
        if len(left) == len(self.regions):
            raise RemoteProtocolError(
                f"there is no region of {region.size:#x} bytes at guest {region.guest_addr:#x}, "
                f"user {region.user_addr:#x}"
            )
        return AddressTable(left)

    def to_guest(self, user_addr: int, length: int) -> int:
        """Return the guest address of a user address.

        Raise RemoteProtocolError unless all `length` bytes are in one region.
        """
        for region in self.regions:
            start = user_addr - region.user_addr
            if start >= 0 and start + length <= region.size:
                return region.guest_addr + start
        raise RemoteProtocolError(
            f"{length} bytes at user address {user_addr:#x} are outside of every region"
        )


def _check(region: Region) -> None:
    if not region.size:
        raise RemoteProtocolError(f"the region at guest {region.guest_addr:#x} is empty")
    for start, limit, what in (
        (region.guest_addr, _ADDRESSES, "guest addresses"),
        (region.user_addr, _ADDRESSES, "user addresses"),
        (region.mmap_offset, _FILE_MAX, "any file"),
    ):
        if start + region.size > limit:
            raise RemoteProtocolError(
                f"a region of {region.size:#x} bytes at {start:#x} passes the end of {what}"
            )


def _check_overlap(ranges: list[tuple[int, int]], kind: str) -> None:
    last = 0
    for start, size in sorted(ranges):
        if start < last:
            raise RemoteProtocolError(f"the region at {kind} {start:#x} overlaps another")
        last = start + size

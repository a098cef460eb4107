"""The layout of a split virtqueue, and what its two sides have in common."""

from __future__ import annotations

import struct
import sys
from typing import Final, TypeAlias

from attrs import frozen

from vconfs.protocol.errors import LocalProtocolError

assert sys.byteorder == "little", "the rings are cast to native integers, and are little-endian"

F_INDIRECT_DESC: Final = 1 << 28
F_EVENT_IDX: Final = 1 << 29

DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4
NO_NOTIFY: Final = 1  # in avail.flags: send no interrupts; in used.flags: send no kicks

SIZE_MAX: Final = 1 << 15
#: The most parts of one buffer, chained or in a table, as in QEMU: each takes memory and time.
PARTS_MAX: Final = 1 << 10

DESC: Final = struct.Struct("<QIHH")  # address, length, flags, next
INDEX_MASK: Final = 0xFFFF

Segment: TypeAlias = tuple[int, int, bool]  # offset, length, True if the device may write


@frozen
class Layout:
    """The positions of a queue's parts: device addresses, or offsets into the driver's memory.

    Descriptor table: 16 bytes per entry, aligned to 16. Available ring: u16 flags, u16 idx, u16 per
    entry, u16 used_event, aligned to 2. Used ring: u16 flags, u16 idx, 8 bytes per entry,
    u16 avail_event, aligned to 4.
    """

    size: int
    desc: int
    avail: int
    used: int

    @classmethod
    def at(cls, size: int, offset: int) -> Layout:
        """Return a layout with the parts one after the other from `offset` on."""
        check_size(size)
        desc = -(-offset // 16) * 16
        avail = desc + 16 * size
        used = -(-(avail + 6 + 2 * size) // 4) * 4
        return cls(size, desc, avail, used)

    @property
    def end(self) -> int:
        """The first byte after the last part, in a layout made by `at`."""
        return self.used + 6 + 8 * self.size


def check_size(size: int) -> None:
    """Raise LocalProtocolError if a queue cannot have this size."""
    if not 0 < size <= SIZE_MAX or size & (size - 1):
        raise LocalProtocolError(f"a queue's size is a power of two up to {SIZE_MAX}, not {size}")


def has_passed(event: int, old: int, new: int) -> bool:
    """True if an index that went from `old` to `new` has passed entry `event` (§2.7.7.2)."""
    return (new - event - 1) & INDEX_MASK < (new - old) & INDEX_MASK

"""Split virtqueues over a memoryview, the driver's side and the device's (virtio 1.2 §2.7).

Theory of operation
-------------------
A queue is three tables in memory that both sides share. The *descriptor table* has the addresses
of buffers. The driver offers a buffer by writing the number of its first descriptor to the
*available ring* and incrementing `avail.idx`. The device gives it back through the *used ring*,
with the number of bytes that it wrote, and increments `used.idx`. Each index counts up for ever,
modulo 2**16; entry i of a ring is in slot i modulo the queue's size. Only one side writes each
table.

Some devices return a buffer that they may only read with the number of bytes that they read. The
driver ignores that number, as Linux does, because there is nothing in such a buffer to be written.

Both sides collect entries and make them visible at once (`publish`), with one write of an index
per batch. `publish` also returns True if the other side wants to be notified. That side can ask for
no notifications with a flag or, with EVENT_IDX, name the entry after which it wants one.

Neither side trusts what the other one wrote. A broken rule raises RemoteProtocolError with the
field and its value, and the queue cannot be used any more.

Memory order: entries are written before the index that announces them, and x86 keeps stores in
order. The only reordering on x86 is a store after a later load. It concerns a side that turns
notifications on and then looks for entries: `request_calls` and `request_kicks` look after the
store, and the interpreter's instructions in between drain the store buffer.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from attrs import frozen

from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError

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

#: The most times that a ring is checked again while a driver keeps adding to it.
_LOOKS_MAX: Final = 3

_DESC: Final = struct.Struct("<QIHH")  # address, length, flags, next
_INDEX_MASK: Final = 0xFFFF

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
        _check_size(size)
        desc = -(-offset // 16) * 16
        avail = desc + 16 * size
        used = -(-(avail + 6 + 2 * size) // 4) * 4
        return cls(size, desc, avail, used)

    @property
    def end(self) -> int:
        """The first byte after the last part, in a layout made by `at`."""
        return self.used + 6 + 8 * self.size


def _check_size(size: int) -> None:
    if not 0 < size <= SIZE_MAX or size & (size - 1):
        raise LocalProtocolError(f"a queue's size is a power of two up to {SIZE_MAX}, not {size}")


def _check_order(segments: Sequence[Segment]) -> None:
    kinds = [writable for _, _, writable in segments]
    if kinds != sorted(kinds):
        raise LocalProtocolError("what the device may write comes after what it may read")


def _passed(event: int, old: int, new: int) -> bool:
    """True if an index that went from `old` to `new` has passed entry `event` (§2.7.7.2)."""
    return (new - event - 1) & _INDEX_MASK < (new - old) & _INDEX_MASK


class DriverQueue:
    """The driver's side of a queue, in memory that it shares with the device.

    `base` is the device address of the memory's first byte. Buffers are addressed by their offset
    in that memory.
    """

    def __init__(
        self, memory: memoryview, layout: Layout, *, base: int = 0, event_idx: bool = False
    ) -> None:
        size = layout.size
        _check_size(size)
        self.size = size
        self._memory = memory
        self._desc = memory[layout.desc : layout.desc + 16 * size]
        self._avail = memory[layout.avail : layout.avail + 6 + 2 * size].cast("H")
        self._used = memory[layout.used : layout.used + 6 + 8 * size].cast("H")
        self._used_entries = memory[layout.used + 4 : layout.used + 4 + 8 * size].cast("I")
        self._base = base
        self._mask = size - 1
        self._event_idx = event_idx
        self._free = list(range(size - 1, -1, -1))
        #: By head: how many bytes the device may write, or -1 if the head is not in flight.
        self._writable = [-1] * size
        self._added = 0  # avail.idx, including entries that are not published yet
        self._published = 0
        self._seen = 0  # the used.idx up to which entries were taken
        self._wants_calls = True

    @property
    def free(self) -> int:
        """The number of descriptors that are not in flight."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """The number of buffers that were added and have not come back."""
        return (self._added - self._seen) & _INDEX_MASK

    @property
    def wants_calls(self) -> bool:
        """True if the device is asked for interrupts."""
        return self._wants_calls

    def add(self, offset: int, length: int, *, writable: bool) -> int:
        """Offer a buffer of one descriptor. Return the number with which it comes back.

        Raise LocalProtocolError if no descriptor is free.
        """
        if not self._free:
            raise LocalProtocolError("no descriptor is free")
        head = self._free.pop()
        flags = DESC_WRITE if writable else 0
        _DESC.pack_into(self._desc, 16 * head, self._base + offset, length, flags, 0)
        self._offer(head, length if writable else 0)
        return head

    def add_indirect(self, table: int, segments: Sequence[Segment]) -> int:
        """Offer a buffer of several parts with one descriptor (INDIRECT_DESC only).

        The descriptions of the parts are written at the offset `table`, 16 bytes each, and must not
        be changed until the buffer comes back. There may be as many parts as the queue has
        descriptors, up to `PARTS_MAX`.
        """
        if not 0 < len(segments) <= min(self.size, PARTS_MAX):
            raise LocalProtocolError(f"{len(segments)} parts in a queue of {self.size}")
        if not self._free:
            raise LocalProtocolError("no descriptor is free")
        _check_order(segments)
        length = 16 * len(segments)
        into = self._memory[table : table + length]
        writable = self._describe(segments, into, range(len(segments)))
        head = self._free.pop()
        _DESC.pack_into(self._desc, 16 * head, self._base + table, length, DESC_INDIRECT, 0)
        self._offer(head, writable)
        return head

    def _describe(
        self, segments: Sequence[Segment], table: memoryview, places: Sequence[int]
    ) -> int:
        """Chain segments at these places of a table. Return how much the device may write."""
        last = len(segments) - 1
        for i, (offset, length, writable) in enumerate(segments):
            flags = (DESC_WRITE if writable else 0) | (DESC_NEXT if i < last else 0)
            after = places[i + 1] if i < last else 0
            _DESC.pack_into(table, 16 * places[i], self._base + offset, length, flags, after)
        return sum(length for _, length, writable in segments if writable)

    def _offer(self, head: int, writable: int) -> None:
        self._writable[head] = writable
        self._avail[2 + (self._added & self._mask)] = head
        self._added = (self._added + 1) & _INDEX_MASK

    def publish(self) -> bool:
        """Make added buffers visible to the device. Return True if it wants to be kicked."""
        old, new = self._published, self._added
        if old == new:
            return False
        self._avail[1] = self._published = new
        if self._event_idx:
            return _passed(self._used[2 + 4 * self.size], old, new)
        return not self._used[0] & NO_NOTIFY

    def has_used(self) -> bool:
        """True if a buffer has come back."""
        return self._seen != self._used[1]

    def pop_used(self) -> tuple[int, int] | None:
        """Take back a buffer. Return its number and how many bytes were written, or None.

        A buffer without writable parts returns 0, whatever the device says.
        """
        if not self._count_used():
            return None
        used = self._pop_one()
        self._free.append(used[0])
        return used

    def pop_many(self, most: int) -> list[tuple[int, int]]:
        """Like `pop_used`, but take up to `most` buffers and keep their descriptors.

        The descriptors are for `offer_many`. There may be more buffers than are returned, but if
        there are any, at least one is returned.
        """
        count = min(self._count_used(), most)
        if count <= 1:
            return [self._pop_one()] if count else []
        seen, writable, mask = self._seen, self._writable, self._mask
        first = seen & mask
        entries = self._used_entries[2 * first : 2 * min(first + count, self.size)].tolist()
        popped: list[tuple[int, int]] = []
        for used in zip(entries[::2], entries[1::2], strict=True):
            head, written = used
            if head > mask or written > writable[head]:
                if not self._is_read_only(head):
                    if not popped:
                        raise self._wrong(head, written)
                    break  # the next call raises the error
                used = head, 0
            writable[head] = -1
            popped.append(used)
        self._seen = (seen + len(popped)) & _INDEX_MASK
        if self._event_idx and self._wants_calls:
            self._avail[2 + self.size] = self._seen
        return popped

    def _pop_one(self) -> tuple[int, int]:
        entry = 2 * (self._seen & self._mask)
        head, written = self._used_entries[entry], self._used_entries[entry + 1]
        if head > self._mask or written > self._writable[head]:
            if not self._is_read_only(head):
                raise self._wrong(head, written)
            written = 0
        self._writable[head] = -1
        self._seen = (self._seen + 1) & _INDEX_MASK
        if self._event_idx and self._wants_calls:
            self._avail[2 + self.size] = self._seen
        return head, written

    def _count_used(self) -> int:
        index, seen = self._used[1], self._seen
        count = (index - seen) & _INDEX_MASK
        shown = (self._published - seen) & _INDEX_MASK
        if count > shown:
            raise RemoteProtocolError(
                f"used.idx jumped from {seen} to {index} with {shown} buffers in flight"
            )
        return count

    def _is_read_only(self, head: int) -> bool:
        """True if the buffer is in flight and has nothing that the device may write."""
        return head <= self._mask and not self._writable[head]

    def _wrong(self, head: int, written: int) -> RemoteProtocolError:
        if head > self._mask or self._writable[head] < 0:
            return RemoteProtocolError(f"used id {head} was not in flight")
        writable = self._writable[head]
        return RemoteProtocolError(
            f"used length {written} is more than the buffer's {writable} bytes"
        )

    def offer_many(self, heads: Iterable[int], writable: int) -> None:
        """Offer buffers again with unchanged descriptors; the device may write `writable` bytes."""
        for head in heads:
            self._offer(head, writable)

    def suppress_calls(self) -> None:
        """Ask for no interrupts. This is a hint: with EVENT_IDX one may come in 2**16 entries."""
        self._wants_calls = False
        if not self._event_idx:
            self._avail[0] = NO_NOTIFY

    def request_calls(self) -> bool:
        """Ask for an interrupt at the next buffer. Return True if one has come back already."""
        self._wants_calls = True
        if self._event_idx:
            self._avail[2 + self.size] = self._seen
        else:
            self._avail[0] = 0
        return self.has_used()


class GuestMemory:
    """The driver's memory as the device addresses it, in regions.

    Raise RemoteProtocolError if regions overlap or are empty.
    """

    def __init__(self, regions: Iterable[tuple[int, memoryview]]) -> None:
        self._regions = sorted(
            ((start, start + len(view), view) for start, view in regions),
            key=lambda region: region[0],
        )
        last = 0
        for start, end, _ in self._regions:
            if start == end:
                raise RemoteProtocolError(f"the memory region at {start:#x} is empty")
            if start < last:
                raise RemoteProtocolError(f"the memory region at {start:#x} overlaps another")
            last = end

    def view(self, address: int, length: int) -> memoryview:
        """Return a view of `length` bytes at `address`, which must be in one region."""
        for start, end, view in self._regions:
            if start <= address and address + length <= end:
                return view[address - start : address - start + length]
        raise RemoteProtocolError(f"{length} bytes at {address:#x} are outside of the memory")


class Chain:
    """A buffer that the driver offers: parts that the device may read, and parts it may write."""

    __slots__ = ("head", "readable", "readable_length", "writable", "writable_length")

    def __init__(self, head: int) -> None:
        self.head: int = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.readable_length: int = 0
        self.writable_length: int = 0

    @property
    def parts(self) -> int:
        """The number of parts of the buffer."""
        return len(self.readable) + len(self.writable)


class DeviceQueue:
    """The device's side of a queue.

    `layout` has addresses in `memory`. `next_avail` is the entry to begin with, for a queue that
    was stopped and is resumed.
    """

    def __init__(
        self,
        memory: GuestMemory,
        layout: Layout,
        *,
        event_idx: bool = False,
        next_avail: int = 0,
    ) -> None:
        size = layout.size
        _check_size(size)
        self.size = size
        self._memory = memory
        self._desc = memory.view(layout.desc, 16 * size)
        self._avail = memory.view(layout.avail, 6 + 2 * size).cast("H")
        self._used = memory.view(layout.used, 6 + 8 * size).cast("H")
        self._used_entries = memory.view(layout.used + 4, 8 * size).cast("I")
        self._mask = size - 1
        self._event_idx = event_idx
        #: By head: how many bytes may be written, or -1 if the head is not taken.
        self._writable = [-1] * size
        self._taken = 0
        self._next = next_avail & _INDEX_MASK
        self._pushed = self._published = next_avail & _INDEX_MASK
        self._wants_kicks = True
        self._watched: set[int] = set()  # heads: see `watch`
        self._looked = 0  # the avail.idx up to which entries were searched for them
        self._returned: list[int] = []  # watched heads that were offered again

    @property
    def next_avail(self) -> int:
        """The index of the first entry that has not been used, where a restart begins."""
        return (self._next - self._taken) & _INDEX_MASK

    @property
    def in_flight(self) -> int:
        """The number of buffers that were taken and not pushed."""
        return self._taken

    def has_available(self) -> bool:
        """True if the driver has offered a buffer that was not taken."""
        return self._next != self._avail[1]

    def pop(self) -> Chain | None:
        """Take the next buffer that the driver offers, or return None if there is none."""
        index = self._avail[1]
        if index == self._next:
            return None
        if (index - self._next) & _INDEX_MASK > self.size - self._taken:
            raise RemoteProtocolError(
                f"avail.idx jumped from {self._next} to {index} in a queue of {self.size}"
            )
        head = self._avail[2 + (self._next & self._mask)]
        if head > self._mask:
            raise RemoteProtocolError(f"avail head {head} in a queue of {self.size}")
        if self._writable[head] >= 0:
            raise RemoteProtocolError(f"avail head {head} is in flight already")
        chain = self._read_chain(head)
        self._writable[head] = chain.writable_length
        self._taken += 1
        self._next = (self._next + 1) & _INDEX_MASK
        if self._watched:
            self._find(head)
        elif self._event_idx and self._wants_kicks:
            self._used[2 + 4 * self.size] = index
        return chain

    def _read_chain(self, head: int) -> Chain:
        chain = Chain(head)
        address, length, flags, _ = _DESC.unpack_from(self._desc, 16 * head)
        if flags & DESC_INDIRECT:
            if flags & DESC_NEXT:
                raise RemoteProtocolError(f"descriptor {head} is INDIRECT and has NEXT")
            self._walk(chain, *self._indirect_table(address, length))
        elif flags & DESC_NEXT:
            self._walk(chain, self._desc, self.size, head)
        else:
            self._append(chain, address, length, flags)
        return chain

    def _indirect_table(self, address: int, length: int) -> tuple[memoryview, int, int]:
        count, rest = divmod(length, 16)
        if rest or not 0 < count <= PARTS_MAX:
            raise RemoteProtocolError(f"an indirect table of {length} bytes")
        return self._memory.view(address, length), count, 0

    def _walk(self, chain: Chain, table: memoryview, size: int, first: int) -> None:
        after = first
        for _ in range(min(size, PARTS_MAX)):
            address, length, flags, following = _DESC.unpack_from(table, 16 * after)
            if flags & DESC_INDIRECT:
                raise RemoteProtocolError(f"descriptor {after} is INDIRECT inside a chain")
            self._append(chain, address, length, flags)
            if not flags & DESC_NEXT:
                return
            after = following
            if after >= size:
                raise RemoteProtocolError(f"descriptor next {after} in a table of {size}")
        if size > PARTS_MAX:
            raise RemoteProtocolError(
                f"the chain of head {chain.head} has more than {PARTS_MAX} parts"
            )
        raise RemoteProtocolError(f"the chain of head {chain.head} has a loop")

    def _append(self, chain: Chain, address: int, length: int, flags: int) -> None:
        view = self._memory.view(address, length)
        if flags & DESC_WRITE:
            chain.writable.append(view)
            chain.writable_length += length
        elif chain.writable:
            raise RemoteProtocolError(f"head {chain.head}: a readable part after a writable one")
        else:
            chain.readable.append(view)
            chain.readable_length += length

    def push(self, head: int, written: int) -> None:
        """Return a buffer to the driver at the next `publish`, with the number of bytes written."""
        if not 0 <= head <= self._mask or self._writable[head] < 0:
            raise LocalProtocolError(f"head {head} is not in flight")
        if written > self._writable[head]:
            raise LocalProtocolError(f"{written} bytes are more than head {head} holds")
        self._writable[head] = -1
        self._taken -= 1
        entry = 2 * (self._pushed & self._mask)
        self._used_entries[entry] = head
        self._used_entries[entry + 1] = written
        self._pushed = (self._pushed + 1) & _INDEX_MASK

    def watch(self, head: int) -> None:
        """Make `returned` report this buffer when the driver offers it again.

        The buffer must be pushed and not published yet. A driver that offers it again has taken the
        data in it. The driver is asked for a kick.
        """
        if not self._watched:
            self._looked = self._avail[1]
        self._watched.add(head)
        self._ask_for_kicks(self._avail[1])

    def returned(self) -> list[int]:
        """Return the watched buffers that were offered again, and stop watching them.

        While others are watched, the driver is asked for a kick at the next buffer.
        """
        for _ in range(_LOOKS_MAX if self._watched else 0):
            index = self._avail[1]
            self._look(index)
            self._ask_for_kicks(index)
            if self._avail[1] == index:  # nothing came meanwhile
                break
        returned, self._returned = self._returned, []
        return returned

    def _look(self, index: int) -> None:
        """Search new entries up to `index` for watched heads, at most a whole ring of them."""
        count = min((index - self._looked) & _INDEX_MASK, self.size)
        for entry in range(index - count, index):
            self._find(self._avail[2 + (entry & self._mask)])
        self._looked = index

    def _find(self, head: int) -> None:
        if head in self._watched:
            self._watched.discard(head)
            self._returned.append(head)

    def publish(self) -> bool:
        """Make pushed buffers visible to the driver. Return True if it wants to be interrupted."""
        old, new = self._published, self._pushed
        if old == new:
            return False
        self._used[1] = self._published = new
        if self._event_idx:
            return _passed(self._avail[2 + self.size], old, new)
        return not self._avail[0] & NO_NOTIFY

    def suppress_kicks(self) -> None:
        """Ask for no kicks. This is a hint, as in `DriverQueue.suppress_calls`."""
        self._wants_kicks = False
        if not self._event_idx:
            self._used[0] = NO_NOTIFY

    def request_kicks(self) -> bool:
        """Ask for a kick at the next offered buffer. Return True if there are some already."""
        for _ in range(_LOOKS_MAX):
            index = self._avail[1]
            self._ask_for_kicks(index)
            if self._avail[1] == index:  # nothing came meanwhile
                break
        return self.has_available()

    def _ask_for_kicks(self, index: int) -> None:
        self._wants_kicks = True
        if self._event_idx:
            self._used[2 + 4 * self.size] = index
        else:
            self._used[0] = 0

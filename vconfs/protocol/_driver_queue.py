"""The driver's side of a split virtqueue; see virtqueue.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vconfs.protocol._virtqueue_layout import (
    DESC,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    INDEX_MASK,
    NO_NOTIFY,
    PARTS_MAX,
    Layout,
    Segment,
    check_size,
    has_passed,
)
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError


class DriverQueue:
    """The driver's side of a queue, in memory that it shares with the device.

    `base` is the device address of the memory's first byte. Buffers are addressed by their offset
    in that memory.
    """

    def __init__(
        self, memory: memoryview, layout: Layout, *, base: int = 0, event_idx: bool = False
    ) -> None:
        size = layout.size
        check_size(size)
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
        #: True if the device is asked for interrupts.
        self.wants_calls: bool = True

    @property
    def free(self) -> int:
        """The number of descriptors that are not in flight."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """The number of buffers that were added and have not come back."""
        return (self._added - self._seen) & INDEX_MASK

    def add(self, offset: int, length: int, *, writable: bool) -> int:
        """Offer a buffer of one descriptor. Return the number with which it comes back.

        Raise LocalProtocolError if no descriptor is free.
        """
        if not self._free:
            raise LocalProtocolError("no descriptor is free")
        head = self._free.pop()
        flags = DESC_WRITE if writable else 0
        DESC.pack_into(self._desc, 16 * head, self._base + offset, length, flags, 0)
        self.offer(head, length if writable else 0)
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
        DESC.pack_into(self._desc, 16 * head, self._base + table, length, DESC_INDIRECT, 0)
        self.offer(head, writable)
        return head

    def _describe(
        self, segments: Sequence[Segment], table: memoryview, places: Sequence[int]
    ) -> int:
        """Chain segments at these places of a table. Return how much the device may write."""
        last = len(segments) - 1
        for i, (offset, length, writable) in enumerate(segments):
            flags = (DESC_WRITE if writable else 0) | (DESC_NEXT if i < last else 0)
            after = places[i + 1] if i < last else 0
            DESC.pack_into(table, 16 * places[i], self._base + offset, length, flags, after)
        return sum(length for _, length, writable in segments if writable)

    def offer(self, head: int, writable: int) -> None:
        """Offer a buffer with an unchanged descriptor; the device may write `writable` bytes."""
        self._writable[head] = writable
        self._avail[2 + (self._added & self._mask)] = head
        self._added = (self._added + 1) & INDEX_MASK

    def publish(self) -> bool:
        """Make added buffers visible to the device. Return True if it wants to be kicked."""
        old, new = self._published, self._added
        if old == new:
            return False
        self._avail[1] = self._published = new
        if self._event_idx:
            return has_passed(self._used[2 + 4 * self.size], old, new)
        return not self._used[0] & NO_NOTIFY

    def has_used(self) -> bool:
        """True if a buffer has come back."""
        return self._seen != self._used[1]

    def pop_used(self) -> tuple[int, int] | None:
        """Take back a buffer. Return its number and how many bytes were written, or None.

        A buffer without writable parts returns 0, whatever the device says.
        """
        if self._seen == self._used[1]:  # the end of most loops, without another call
            return None
        used = self.pop_kept()
        if used is not None:
            self._free.append(used[0])
        return used

    def pop_kept(self) -> tuple[int, int] | None:
        """Like `pop_used`, but keep the descriptor, which is for `offer`."""
        seen, index = self._seen, self._used[1]
        if seen == index:
            return None
        if (index - seen) & INDEX_MASK > (self._published - seen) & INDEX_MASK:
            raise self._jumped(index)
        entry = 2 * (seen & self._mask)
        head, written = self._used_entries[entry], self._used_entries[entry + 1]
        if head > self._mask or written > self._writable[head]:
            if not self._is_read_only(head):
                raise self._wrong(head, written)
            written = 0
        self._writable[head] = -1
        self._seen = (seen + 1) & INDEX_MASK
        if self._event_idx and self.wants_calls:
            self._avail[2 + self.size] = self._seen
        return head, written

    def pop_many(self, most: int) -> list[tuple[int, int]]:
        """Like `pop_used`, but take up to `most` buffers and keep their descriptors.

        The descriptors are for `offer_many`. There may be more buffers than are returned, but if
        there are any, at least one is returned.
        """
        count = min(self._count_used(), most)
        if count <= 1:
            one = self.pop_kept()
            return [] if one is None else [one]
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
        self._seen = (seen + len(popped)) & INDEX_MASK
        if self._event_idx and self.wants_calls:
            self._avail[2 + self.size] = self._seen
        return popped

    def _count_used(self) -> int:
        index, seen = self._used[1], self._seen
        count = (index - seen) & INDEX_MASK
        if count > (self._published - seen) & INDEX_MASK:
            raise self._jumped(index)
        return count

    def _jumped(self, index: int) -> RemoteProtocolError:
        seen = self._seen
        shown = (self._published - seen) & INDEX_MASK
        return RemoteProtocolError(
            f"used.idx jumped from {seen} to {index} with {shown} buffers in flight"
        )

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
        """Like `offer`, for several buffers."""
        for head in heads:
            self.offer(head, writable)

    def suppress_calls(self) -> None:
        """Ask for no interrupts. This is a hint: with EVENT_IDX one may come in 2**16 entries."""
        self.wants_calls = False
        if self._event_idx:
            self._avail[2 + self.size] = (self._seen - 1) & INDEX_MASK
        else:
            self._avail[0] = NO_NOTIFY

    def request_calls(self) -> bool:
        """Ask for an interrupt at the next buffer. Return True if one has come back already."""
        self.wants_calls = True
        if self._event_idx:
            self._avail[2 + self.size] = self._seen
        else:
            self._avail[0] = 0
        return self.has_used()


def _check_order(segments: Sequence[Segment]) -> None:
    kinds = [writable for _, _, writable in segments]
    if kinds != sorted(kinds):
        raise LocalProtocolError("what the device may write comes after what it may read")

"""The device's side of a split virtqueue; see virtqueue.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vconfs.protocol._virtqueue_layout import (
    DESC,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    INDEX_MASK,
    NO_NOTIFY,
    PARTS_MAX,
    Layout,
    check_size,
    has_passed,
)
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError

#: The most times that a ring is checked again while a driver keeps adding to it.
_LOOKS_MAX: Final = 3


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

    __slots__ = ("head", "parts", "readable", "readable_length", "writable", "writable_length")

    def __init__(self, head: int) -> None:
        self.head: int = head
        self.parts: int = 0
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.readable_length: int = 0
        self.writable_length: int = 0


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
        check_size(size)
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
        self._next = next_avail & INDEX_MASK
        self._pushed = self._published = next_avail & INDEX_MASK
        self._wants_kicks = True
        self._watched: set[int] = set()  # heads: see `watch`
        self._looked = 0  # the avail.idx up to which entries were searched for them
        self._returned: list[int] = []  # watched heads that were offered again

    @property
    def next_avail(self) -> int:
        """The index of the first entry that has not been used, where a restart begins."""
        return (self._next - self._taken) & INDEX_MASK

    @property
    def in_flight(self) -> int:
        """The number of buffers that were taken and not pushed."""
        return self._taken

    @property
    def available(self) -> int:
        """The number of buffers that the driver has offered and that were not taken."""
        return (self._avail[1] - self._next) & INDEX_MASK

    def has_available(self) -> bool:
        """True if the driver has offered a buffer that was not taken."""
        return self._next != self._avail[1]

    def pop(self) -> Chain | None:
        """Take the next buffer that the driver offers, or return None if there is none."""
        index = self._avail[1]
        if index == self._next:
            return None
        if (index - self._next) & INDEX_MASK > self.size - self._taken:
            raise RemoteProtocolError(
                f"avail.idx jumped from {self._next} to {index} in a queue of {self.size}"
            )
        head = self._avail[2 + (self._next & self._mask)]
        if head > self._mask:
            raise RemoteProtocolError(f"avail head {head} in a queue of {self.size}")
        if self._writable[head] >= 0:
            raise RemoteProtocolError(f"avail head {head} is in flight already")
        chain = Chain(head)
        address, length, flags, _ = DESC.unpack_from(self._desc, 16 * head)
        if flags & (DESC_INDIRECT | DESC_NEXT):
            self._read_parts(chain, address, length, flags)
        else:
            self._append(chain, address, length, flags)
        self._writable[head] = chain.writable_length
        self._taken += 1
        self._next = (self._next + 1) & INDEX_MASK
        if self._watched:
            self._find(head)
        elif self._event_idx and self._wants_kicks:
            self._used[2 + 4 * self.size] = index
        return chain

    def _read_parts(self, chain: Chain, address: int, length: int, flags: int) -> None:
        """Read a chain whose first descriptor is not all of it."""
        if not flags & DESC_INDIRECT:
            self._walk(chain, self._desc, self.size, chain.head)
        elif flags & DESC_NEXT:
            raise RemoteProtocolError(f"descriptor {chain.head} is INDIRECT and has NEXT")
        else:
            self._walk(chain, *self._indirect_table(address, length))

    def _indirect_table(self, address: int, length: int) -> tuple[memoryview, int, int]:
        count, rest = divmod(length, 16)
        if rest or not 0 < count <= PARTS_MAX:
            raise RemoteProtocolError(f"an indirect table of {length} bytes")
        return self._memory.view(address, length), count, 0

    def _walk(self, chain: Chain, table: memoryview, size: int, first: int) -> None:
        after = first
        for _ in range(min(size, PARTS_MAX)):
            address, length, flags, following = DESC.unpack_from(table, 16 * after)
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
        chain.parts += 1
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
        self._pushed = (self._pushed + 1) & INDEX_MASK

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
        count = min((index - self._looked) & INDEX_MASK, self.size)
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
            return has_passed(self._avail[2 + self.size], old, new)
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

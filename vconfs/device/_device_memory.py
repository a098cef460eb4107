"""Memory that a device can access, and where in it the queues are.

The device has addresses of its own for the memory. Through an IOMMU, all of it has consecutive
addresses. Without one, the addresses are physical, and only *runs* of the memory are consecutive.
A queue, with its rings and buffers, is in one run, so that one number leads from its offsets in
the memory to the device's addresses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from attrs import frozen

from vconfs.errors import VconfsError


class Run(NamedTuple):
    """A part of the memory whose device addresses are consecutive."""

    offset: int
    size: int
    #: The device's address of its first byte.
    address: int


class Place(NamedTuple):
    """The place of a queue: its offset in the memory, and what to add for the device's address."""

    offset: int
    base: int


@frozen
class DeviceMemory:
    """Memory that a device can access, in runs."""

    view: memoryview
    runs: Sequence[Run]
    #: How to get more memory, for an error message.
    advice: str = ""

    @classmethod
    def at(cls, view: memoryview, address: int = 0) -> DeviceMemory:
        """Return memory of one run, which the device has at `address`."""
        return cls(view, [Run(0, len(view), address)])

    @property
    def size(self) -> int:
        """The bytes of all runs."""
        return sum(run.size for run in self.runs)

    def places(self, sizes: Iterable[int]) -> Iterator[Place]:
        """Yield the place of each queue of these sizes: the first run that has room for it.

        Raise ValueError at a queue for which none has room.
        """
        free = [[run.offset, run.size, run.address - run.offset] for run in self.runs]
        for size in sizes:
            part = next((part for part in free if part[1] >= size), None)
            if part is None:
                raise ValueError(f"no run has room for {size} bytes")
            yield Place(part[0], part[2])
            part[0] += size
            part[1] -= size

    def has_room(self, sizes: Iterable[int]) -> bool:
        """True if there is a place for each queue of these sizes."""
        try:
            deque(self.places(sizes), maxlen=0)
        except ValueError:
            return False
        return True

    def too_little(self, queues: int) -> VconfsError:
        """Return the error that the memory is not enough for that many queues."""
        advice = f"; {self.advice}" if self.advice else ""
        return VconfsError(
            f"{self.size >> 20} MiB of memory are not enough for {queues} queues{advice}"
        )


def find_runs(addresses: Iterable[int], page_size: int) -> list[Run]:
    """Return the runs of memory whose pages have these device addresses, in their order."""
    runs: list[Run] = []
    for number, address in enumerate(addresses):
        if runs and runs[-1].address + runs[-1].size == address:
            runs[-1] = runs[-1]._replace(size=runs[-1].size + page_size)
        else:
            runs.append(Run(number * page_size, page_size, address))
    return runs

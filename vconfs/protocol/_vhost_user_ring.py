"""A back-end's state of one ring."""

from __future__ import annotations

from typing import Final

from attrs import define, field

from vconfs.protocol._vhost_user_events import Notifier, RingSetup
from vconfs.protocol._vhost_user_memory import AddressTable
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.virtqueue import SIZE_MAX, Layout

_INDEX_MAX: Final = (1 << 16) - 1
_ALIGNMENTS: Final = (16, 2, 4)


@define
class Ring:
    """A ring, from its first SET_VRING message on.

    For invalid values, the methods raise RemoteProtocolError and change nothing.
    """

    index: int
    num: int = 0
    #: User addresses: descriptor table, available ring, used ring.
    parts: tuple[int, int, int] | None = None
    base: int = 0
    fds: dict[Notifier, int] = field(factory=dict)
    enabled: bool = False
    started: bool = False

    def set_num(self, num: int) -> None:
        """Set the number of descriptors."""
        if not 0 < num <= SIZE_MAX or num & (num - 1):
            raise RemoteProtocolError(f"ring {self.index} with a size of {num}")
        self.num = num

    def set_base(self, base: int) -> None:
        """Set the entry of the available ring with which to begin."""
        if base > _INDEX_MAX:
            raise RemoteProtocolError(f"ring {self.index} with a base of {base}")
        self.base = base

    def set_parts(self, parts: tuple[int, int, int], memory: AddressTable) -> None:
        """Set the user addresses of the parts, which must all be in the memory."""
        for address, alignment in zip(parts, _ALIGNMENTS, strict=True):
            if address % alignment:
                raise RemoteProtocolError(
                    f"ring {self.index}: the address {address:#x} is not aligned to {alignment}"
                )
        self._locate(parts, memory)
        self.parts = parts

    def layout(self, memory: AddressTable) -> Layout:
        """Return the guest addresses of the parts."""
        if not self.num or self.parts is None:
            raise RemoteProtocolError(f"ring {self.index} has no size or no address yet")
        return self._locate(self.parts, memory)

    def setup(self, memory: AddressTable, enabled: bool) -> RingSetup:
        """Return the values needed to serve the ring."""
        kick, call, err = (self.fds.get(notifier) for notifier in Notifier)
        return RingSetup(self.layout(memory), self.base, kick, call, err, enabled)

    def _locate(self, parts: tuple[int, int, int], memory: AddressTable) -> Layout:
        sizes = (16 * self.num, 6 + 2 * self.num, 6 + 8 * self.num)
        found = zip(parts, sizes, strict=True)
        return Layout(self.num, *(memory.to_guest(address, size) for address, size in found))

"""Bus 0 of a machine behind qtest: its functions, and the placement of their BARs.

The config space is accessed through the ports 0xcf8 and 0xcfc. BARs are placed one after the other
from 0xe0000000 on, as firmware would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vconfs.device.qtest._qtest_client import QtestClient
from vconfs.protocol import qtest, virtio_pci
from vconfs.protocol.errors import RemoteProtocolError

_CONFIG_ADDRESS: Final = 0xCF8
_CONFIG_DATA: Final = 0xCFC
_CONFIG_ENABLE: Final = 1 << 31
_BARS_START: Final = 0xE0000000
_BARS_END: Final = 0xFEC00000  # the I/O APIC
SLOTS: Final = 32


class QtestBus:
    """The bus, which all functions of one machine share."""

    def __init__(self, client: QtestClient) -> None:
        self.client = client
        self._free = _BARS_START

    def take(self, size: int) -> int | None:
        """Return an address for a BAR, or None if no address is free."""
        place = -(-self._free // size) * size
        if place + size > _BARS_END:
            return None
        self._free = place + size
        return place

    async def find(self, *devices: int) -> int | None:
        """Return the first slot with one of these devices of the virtio vendor, or None."""
        wanted = [device << 16 | virtio_pci.VENDOR for device in devices]
        for slot in range(SLOTS):
            if await QtestFunction(self, slot).read_config(0, 4) in wanted:
                return slot
        return None


class QtestFunction:
    """One PCI function: its config space and its BARs."""

    def __init__(self, bus: QtestBus, slot: int, function: int = 0) -> None:
        self._bus = bus
        self._address = _CONFIG_ENABLE | slot << 11 | function << 8
        self._bars: dict[int, int] = {}

    async def read_config(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of the function's config space."""
        self._select(offset)
        return await self._bus.client.call(qtest.read_port(_CONFIG_DATA + (offset & 3), size))

    async def read_whole_config(self) -> bytes:
        """Read the first 256 bytes of the config space."""
        words = [await self.read_config(at, 4) for at in range(0, virtio_pci.CONFIG_SIZE, 4)]
        return b"".join(word.to_bytes(4, "little") for word in words)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of the function's config space, without waiting."""
        self._select(offset)
        self._bus.client.post(qtest.write_port(_CONFIG_DATA + (offset & 3), size, value))

    def _select(self, offset: int) -> None:
        address = self._address | offset & ~3
        self._bus.client.post(qtest.write_port(_CONFIG_ADDRESS, 4, address))

    async def bar_sizes(self) -> Mapping[int, int]:
        """Place the BARs, as firmware would, and return the size of each."""
        sizes: dict[int, int] = {}
        index = 0
        while index < virtio_pci.BARS:
            bar = await self._measure_bar(index)
            if bar.memory and bar.size:
                place = self._bus.take(bar.size)
                if place is None:
                    raise RemoteProtocolError(f"BAR {index} has {bar.size:#x} bytes")
                self.write_config(virtio_pci.BAR_0 + 4 * index, 4, place)
                if bar.wide:
                    self.write_config(virtio_pci.BAR_0 + 4 * index + 4, 4, 0)
                self._bars[index], sizes[index] = place, bar.size
            index += 2 if bar.wide else 1
        enable = virtio_pci.COMMAND_MEMORY | virtio_pci.COMMAND_MASTER
        self.write_config(virtio_pci.COMMAND, 2, enable)
        return sizes

    def address(self, bar: int, offset: int) -> int:
        """Return the machine's address of an offset in a BAR."""
        return self._bars[bar] + offset

    async def _measure_bar(self, index: int) -> virtio_pci.Bar:
        register = virtio_pci.BAR_0 + 4 * index
        self.write_config(register, 4, 0xFFFFFFFF)
        low = await self.read_config(register, 4)
        if low & 7 != 4 or index == virtio_pci.BARS - 1:
            return virtio_pci.parse_bar(index, low, 0)
        self.write_config(register + 4, 4, 0xFFFFFFFF)
        return virtio_pci.parse_bar(index, low, await self.read_config(register + 4, 4))

    async def read(self, bar: int, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of a BAR."""
        return await self._bus.client.call(qtest.read(self.address(bar, offset), size))

    def post(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of a BAR, without waiting."""
        self._bus.client.post(qtest.write(self.address(bar, offset), size, value))

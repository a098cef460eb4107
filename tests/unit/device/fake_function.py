"""A virtio console on a PCI bus, by its registers: what a transport reaches in the tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import trio

from tests.unit.protocol.test_virtio_pci import BARS, REAL
from vconfs.device._device_memory import DeviceMemory
from vconfs.errors import VconfsError
from vconfs.protocol.virtio_pci import Common, Msix, Register

#: What a device says of a vector that it refuses (virtio 1.2 §4.1.4.3).
NO_VECTOR = 0xFFFF
ISR, CONFIG, NOTIFY = 0x1000, 0x2000, 0x3000


class FakeFunction:
    """A console's registers, as QEMU has them, with `vectors` MSI-X vectors."""

    def __init__(self, *, ports: int = 2, vectors: int = 0) -> None:
        self.view = memoryview(bytearray(8 << 20))
        self.base = 1 << 40
        self.memory = DeviceMemory.at(self.view, self.base)
        self.vectors = vectors
        self.function = REAL
        self.bars: Mapping[int, int] = BARS
        self.features = 0x10130000006
        self.config = bytes(4) + ports.to_bytes(4, "little")
        self.queues = 2 * ports + 2
        self.queue_size = 64
        self.notify_off: int | None = None
        self.status = 0
        self.isr = 0
        self.generation = 0
        self.generation_step = 0
        self.refused_status = 0
        self.refused_vectors: set[int] = set()
        self.resets = True
        self.words: dict[tuple[int, Register], int] = {}
        self.plain: dict[Register, int] = {}
        self.kicks: list[int] = []
        self.statuses: list[int] = []
        #: Vectors that were raised and not told to the driver; none: the line was.
        self.raised: set[int | None] = set()
        self.gone = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.function[offset : offset + size], "little")

    async def read_whole_config(self) -> bytes:
        return self.function

    async def bar_sizes(self) -> Mapping[int, int]:
        return self.bars

    async def enable_vectors(self, msix: Msix | None) -> int:
        if msix is None:
            self.vectors = 0
        return self.vectors

    def interrupt(self, vector: int | None = None) -> None:
        """Raise a vector, or the line if it is None."""
        self.raised.add(vector)
        self._waiting.unpark_all()

    def go_away(self) -> None:
        """Be unplugged."""
        self.gone = True
        self._waiting.unpark_all()

    async def wait_interrupt(self) -> Collection[int]:
        await trio.lowlevel.checkpoint()
        while not self.raised and not self.gone:
            await self._waiting.park()
        if self.gone:
            raise VconfsError("the bus is gone")
        raised, self.raised = self.raised, set()
        return {vector for vector in raised if vector is not None}

    async def read(self, bar: int, offset: int, size: int) -> int:
        await trio.lowlevel.checkpoint()
        if bar != 4:
            return 0
        if offset == ISR:
            isr, self.isr = self.isr, 0
            return isr
        if offset >= CONFIG:
            at = offset - CONFIG
            return int.from_bytes(self.config[at : at + size], "little")
        return self._get(Register(offset, size))

    def _get(self, register: Register) -> int:
        queue = self.plain.get(Common.QUEUE_SELECT, 0)
        match register:
            case Common.DEVICE_FEATURE:
                return self.features >> 32 * self.plain[Common.DEVICE_FEATURE_SELECT] & 0xFFFFFFFF
            case Common.NUM_QUEUES:
                return self.queues
            case Common.DEVICE_STATUS:
                return self.status
            case Common.CONFIG_GENERATION:
                self.generation = (self.generation + self.generation_step) & 255
                return self.generation
            case Common.QUEUE_SIZE:
                return self.queue_size
            case Common.QUEUE_NOTIFY_OFF:
                return queue if self.notify_off is None else self.notify_off
            case Common.CONFIG_MSIX_VECTOR:
                return self.plain[register]
        return self.words.get((queue, register), 0)

    def post(self, bar: int, offset: int, size: int, value: int) -> None:
        assert 0 <= value < 1 << 8 * size
        if bar != 4:
            return
        if offset >= NOTIFY:
            self.kicks.append(value)
            return
        register = Register(offset, size)
        if register == Common.DEVICE_STATUS:
            self._set_status(value)
        elif register in (Common.CONFIG_MSIX_VECTOR, Common.QUEUE_MSIX_VECTOR):
            self._store(register, NO_VECTOR if value in self.refused_vectors else value)
        else:
            self._store(register, value)

    def _store(self, register: Register, value: int) -> None:
        self.plain[register] = value
        self.words[self.plain.get(Common.QUEUE_SELECT, 0), register] = value

    def _set_status(self, value: int) -> None:
        self.statuses.append(value)
        if value:
            self.status = value & ~self.refused_status
        elif self.resets:
            self.status = 0
            self.words.clear()

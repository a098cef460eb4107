"""A virtio console inside a QEMU process that has no guest: vconfs takes the guest's place.

It is for trying QEMU's device model, and for testing with it. DIR holds QEMU's `qtest` socket and
the file `ram` with the machine's memory, shared. This is a small machine for it; its firmware is
64 KiB of `cli; hlt`, so that the processor does nothing:

    qemu-system-x86_64 -accel tcg -bios hlt.bin -nodefaults -display none -nic none
      -machine q35,memory-backend=ram -m 64M
      -object memory-backend-file,id=ram,size=64M,mem-path=DIR/ram,share=on
      -qtest unix:DIR/qtest,server=on,wait=off -qtest-log none
      -device virtio-serial-pci,disable-legacy=on,addr=4 ...

Interrupts are the lines of the I/O APIC. They are MSI-X messages if the machine also has

      -chardev socket,id=iv,path=DIR/ivshmem -device ivshmem-doorbell,vectors=2,chardev=iv

and QEMU's ivshmem-server listens at that socket.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import frozen

from vconfs.device._device_memory import DeviceMemory
from vconfs.device.pci import open_pci
from vconfs.device.qtest._bus import SLOTS, QtestBus, QtestFunction
from vconfs.device.qtest._doorbells import open_doorbells
from vconfs.device.qtest._qtest_client import QtestClient, connect
from vconfs.errors import VconfsError
from vconfs.link.link import OpenDevice
from vconfs.link.notifications import Told
from vconfs.protocol import qtest, virtio_pci
from vconfs.protocol.virtio_pci import Msix
from vconfs.syntax.url_options import RESIZE_OPTION, resize_rows_first, split_options
from vconfs.system.tasks import open_background

#: The first MiB holds what old PCs have there.
_MEMORY_START: Final = 1 << 20
_MEMORY_MAX: Final = 1 << 30


class QtestTransport(QtestFunction):
    """The way to one PCI function, its memory and its interrupts.

    `doorbells` is the path of the ivshmem server's socket, which need not exist.
    """

    def __init__(
        self,
        bus: QtestBus,
        slot: int,
        function: int,
        memory: memoryview,
        doorbells: Path,
        nursery: trio.Nursery,
        stack: ExitStack,
    ) -> None:
        super().__init__(bus, slot, function)
        self.memory: DeviceMemory = DeviceMemory.at(memory, _MEMORY_START)
        self._doorbells = doorbells
        self._nursery = nursery
        self._stack = stack
        self._vectors: Told[int] | None = None
        self._control = 0  # where MSI-X is enabled in the config space

    async def enable_vectors(self, msix: Msix | None) -> int:
        """Let MSI-X messages ring the doorbells, if there are any, or else use the line."""
        if self._vectors is not None and msix is None:
            self._vectors = None
            self.write_config(self._control, 2, 0)
        count = 0
        if msix is not None and self._doorbells.exists():
            self._control = msix.capability + 2
            count = await self._enable_msix(msix)
        if not count:
            await self._bus.client.call(qtest.intercept_interrupts("ioapic"))
        return count

    async def _enable_msix(self, msix: Msix) -> int:
        doorbells = await open_doorbells(
            self._bus, self._doorbells, msix.vectors, self._nursery, self._stack
        )
        if doorbells is None:
            return 0
        for vector, value in enumerate(doorbells.values):
            entry = virtio_pci.MSIX_ENTRY.pack(doorbells.register, value, 0)
            at = msix.table.offset + len(entry) * vector
            for word in range(0, len(entry), 4):
                number = int.from_bytes(entry[word : word + 4], "little")
                self.post(msix.table.bar, at + word, 4, number)
        self.write_config(self._control, 2, virtio_pci.MSIX_ENABLE)
        self._vectors = doorbells.rung
        return len(doorbells.values)

    async def wait_interrupt(self) -> Collection[int]:
        """Wait until a doorbell is rung, or an interrupt line is raised."""
        if self._vectors is None:
            await self._bus.client.wait_interrupt()
            return ()
        vectors = await self._vectors.take()
        self._bus.client.check()
        return vectors


@frozen
class QtestAddress:
    """The address in a DEVICE url: `qtest:DIR[,addr=SLOT.FUNCTION][,resize=rows-first]`."""

    directory: Path
    slot: int | None = None
    function: int = 0
    resize_rows_first: bool = False

    @classmethod
    def parse(cls, rest: str) -> QtestAddress:
        """Parse the url after `qtest:`. Raise ValueError if it is wrong."""
        directory, options = split_options("qtest", rest, "addr=SLOT.FUNCTION", RESIZE_OPTION)
        if not directory:
            raise ValueError("qtest: needs the directory with QEMU's socket")
        rows_first = resize_rows_first(options)
        if "addr" not in options:
            return cls(Path(directory), resize_rows_first=rows_first)
        found = re.fullmatch(r"([0-9a-fA-F]{1,2})(?:\.([0-7]))?", options["addr"])
        if not found or int(found[1], 16) >= SLOTS:
            raise ValueError(f"qtest: {options['addr']!r} is not a SLOT.FUNCTION, like 04.0")
        return cls(Path(directory), int(found[1], 16), int(found[2] or 0), rows_first)


@asynccontextmanager
async def open_qtest(rest: str) -> AsyncIterator[OpenDevice]:
    """Drive the console of a QEMU process; `rest` is the url after `qtest:`.

    Without `addr`, it is the first console on bus 0. Raise ValueError if `rest` is wrong,
    VconfsError if the device cannot be used.
    """
    address = QtestAddress.parse(rest)
    memory = _map_memory(address.directory / "ram")
    with ExitStack() as stack:
        client = QtestClient(stack.enter_context(connect(address.directory / "qtest")))
        async with open_background() as nursery:
            nursery.start_soon(client.run)
            bus, slot = QtestBus(client), address.slot
            if slot is None:
                slot = await bus.find(virtio_pci.CONSOLE, virtio_pci.CONSOLE_TRANSITIONAL)
            if slot is None:
                raise VconfsError("there is no virtio console on bus 0")
            doorbells = address.directory / "ivshmem"
            transport = QtestTransport(
                bus, slot, address.function, memory, doorbells, nursery, stack
            )
            rows_first = address.resize_rows_first
            async with open_pci(transport, resize_rows_first=rows_first) as device:
                yield device


def _map_memory(path: Path) -> memoryview:
    try:
        with path.open("r+b") as file:
            size = min(os.fstat(file.fileno()).st_size, _MEMORY_MAX)
            if size <= _MEMORY_START:
                raise VconfsError(f"{path} has only {size} bytes")
            return memoryview(mmap.mmap(file.fileno(), size))[_MEMORY_START:]
    except OSError as error:
        raise VconfsError(f"cannot map {path}: {error.strerror}") from None

"""A virtio console inside of a QEMU process that has no guest: we take the guest's place.

DIR holds QEMU's `qtest` socket and the file `ram` that backs the machine's memory, shared. A
thin machine for it (64 KiB of `cli; hlt` as firmware, so that the processor stays out of it):

    qemu-system-x86_64 -accel tcg -bios hlt.bin -nodefaults -display none -nic none
      -machine q35,memory-backend=ram -m 64M
      -object memory-backend-file,id=ram,size=64M,mem-path=DIR/ram,share=on
      -qtest unix:DIR/qtest,server=on,wait=off -qtest-log none
      -device virtio-serial-pci,disable-legacy=on,addr=4 ...

The PCI config space is reached through the ports 0xcf8 and 0xcfc, BARs are placed from
0xe0000000 on, interrupts are the lines of the I/O APIC.
"""

from __future__ import annotations

import mmap
import os
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from attrs import frozen

from vconfs.background import open_background
from vconfs.device.errors import DeviceError
from vconfs.device.pci import open_pci
from vconfs.device.url import RESIZE_OPTION, resize_rows_first, split_options
from vconfs.driver import Driver
from vconfs.ports import PortManager
from vconfs.protocol import qtest, virtio_pci
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.virtio_pci import Msix

_CONFIG_ADDRESS: Final = 0xCF8
_CONFIG_DATA: Final = 0xCFC
_CONFIG_ENABLE: Final = 1 << 31
_BARS_START: Final = 0xE0000000
_BARS_END: Final = 0xFEC00000  # the I/O APIC
#: The first MiB holds what old PCs have there.
_MEMORY_START: Final = 1 << 20
_MEMORY_MAX: Final = 1 << 30
_SLOTS: Final = 32

#: How long QEMU may take to answer, and how many bytes of commands may wait for it.
_ANSWER_SECONDS: Final = 5.0
_BACKLOG_MAX: Final = 1 << 20
_RECEIVE_SIZE: Final = 1 << 16


class _Pending:
    """A command that somebody waits for."""

    __slots__ = ("answer", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.answer: int | DeviceError | None = None


class QtestClient:
    """Sends commands to QEMU, in order, and keeps track of its interrupt lines."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._out = bytearray()
        self._stuck = trio.lowlevel.ParkingLot()
        self._pending: deque[_Pending | None] = deque()
        self._interrupt = trio.Event()
        self._lost: str = ""

    async def run(self) -> None:
        """Receive and send, until QEMU is lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_backlog)
            await self._receive_all()
            nursery.cancel_scope.cancel()

    def post(self, command: bytes) -> None:
        """Send a command whose answer nobody waits for."""
        self._put(command, None)

    async def call(self, command: bytes) -> int:
        """Send a command, and give what it answers."""
        pending = _Pending()
        self._put(command, pending)
        with trio.move_on_after(_ANSWER_SECONDS):
            await pending.event.wait()
        if isinstance(pending.answer, int):
            return pending.answer
        raise pending.answer or DeviceError(f"QEMU has not answered in {_ANSWER_SECONDS:g} s")

    async def wait_interrupt(self) -> None:
        """Wait until a line was raised since the last call."""
        if not self._lost:
            await self._interrupt.wait()
        if self._lost:
            raise DeviceError(self._lost)
        self._interrupt = trio.Event()

    def _put(self, command: bytes, pending: _Pending | None) -> None:
        if self._lost:
            _settle(pending, DeviceError(self._lost))
            return
        self._pending.append(pending)
        self._out += command
        if len(self._out) == len(command):
            self._send_some()
        elif len(self._out) > _BACKLOG_MAX:
            self._lose("QEMU takes no commands")

    def _send_some(self) -> None:
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(f"QEMU is gone: {error.strerror}")
            return
        del self._out[:sent]
        if self._out:
            self._stuck.unpark_all()

    async def _send_backlog(self) -> None:
        while not self._lost:
            if not self._out:
                await self._stuck.park()
            await trio.lowlevel.wait_writable(self._socket)
            self._send_some()

    async def _receive_all(self) -> None:
        reader = qtest.LineReader()
        while not self._lost:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                data = self._socket.recv(_RECEIVE_SIZE)
                if not data:
                    self._lose("QEMU is gone")
                    break
                for event in reader.receive(data):
                    self._handle(event)
            except BlockingIOError:
                continue
            except OSError as error:
                self._lose(f"QEMU is gone: {error.strerror}")
            except RemoteProtocolError as error:
                self._lose(str(error))

    def _handle(self, event: qtest.QtestEvent) -> None:
        if isinstance(event, qtest.Interrupt):
            if event.raised:
                self._interrupt.set()
            return
        if not self._pending:
            raise RemoteProtocolError("an answer to no command")
        pending = self._pending.popleft()
        if isinstance(event, qtest.Answer):
            _settle(pending, event.value)
        else:
            _settle(pending, DeviceError(f"QEMU refuses a command: {event.reason}"))

    def _lose(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._out.clear()
        for pending in self._pending:
            _settle(pending, DeviceError(reason))
        self._pending.clear()
        self._interrupt.set()


def _settle(pending: _Pending | None, answer: int | DeviceError) -> None:
    if pending is not None:
        pending.answer = answer
        pending.event.set()


class QtestTransport:
    """One PCI function of the machine; see `vconfs.device.pci.Transport`."""

    def __init__(self, client: QtestClient, memory: memoryview, slot: int, function: int) -> None:
        self.memory = memory
        self.base = _MEMORY_START
        self._client = client
        self._address = _CONFIG_ENABLE | slot << 11 | function << 8
        self._bars: dict[int, int] = {}

    async def read_config(self, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of the function's config space."""
        self._select(offset)
        return await self._client.call(qtest.read_port(_CONFIG_DATA + (offset & 3), size))

    async def read_whole_config(self) -> bytes:
        """Read the first 256 bytes of the config space."""
        words = [await self.read_config(at, 4) for at in range(0, virtio_pci.CONFIG_SIZE, 4)]
        return b"".join(word.to_bytes(4, "little") for word in words)

    def _write_config(self, offset: int, size: int, value: int) -> None:
        self._select(offset)
        self._client.post(qtest.write_port(_CONFIG_DATA + (offset & 3), size, value))

    def _select(self, offset: int) -> None:
        address = self._address | offset & ~3
        self._client.post(qtest.write_port(_CONFIG_ADDRESS, 4, address))

    async def bar_sizes(self) -> Mapping[int, int]:
        """Place the BARs, as a firmware would, and give the size of each."""
        sizes: dict[int, int] = {}
        place, index = _BARS_START, 0
        while index < virtio_pci.BARS:
            bar = await self._measure_bar(index)
            if bar.memory and bar.size:
                place = -(-place // bar.size) * bar.size
                if place + bar.size > _BARS_END:
                    raise RemoteProtocolError(f"BAR {index} has {bar.size:#x} bytes")
                self._write_config(virtio_pci.BAR_0 + 4 * index, 4, place)
                if bar.wide:
                    self._write_config(virtio_pci.BAR_0 + 4 * index + 4, 4, 0)
                self._bars[index], sizes[index] = place, bar.size
                place += bar.size
            index += 2 if bar.wide else 1
        enable = virtio_pci.COMMAND_MEMORY | virtio_pci.COMMAND_MASTER
        self._write_config(virtio_pci.COMMAND, 2, enable)
        return sizes

    async def _measure_bar(self, index: int) -> virtio_pci.Bar:
        register = virtio_pci.BAR_0 + 4 * index
        self._write_config(register, 4, 0xFFFFFFFF)
        low = await self.read_config(register, 4)
        if low & 7 != 4 or index == virtio_pci.BARS - 1:
            return virtio_pci.parse_bar(index, low, 0)
        self._write_config(register + 4, 4, 0xFFFFFFFF)
        return virtio_pci.parse_bar(index, low, await self.read_config(register + 4, 4))

    async def read(self, bar: int, offset: int, size: int) -> int:
        """Read 1, 2 or 4 bytes of a BAR."""
        return await self._client.call(qtest.read(self._bars[bar] + offset, size))

    def post(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of a BAR, without waiting."""
        self._client.post(qtest.write(self._bars[bar] + offset, size, value))

    async def enable_vectors(self, msix: Msix | None) -> int:
        """Use the interrupt line: there is nothing that would receive our MSI-X messages."""
        await self._client.call(qtest.intercept_interrupts("ioapic"))
        return 0

    async def wait_interrupt(self) -> Collection[int]:
        """Wait until an interrupt line is raised."""
        await self._client.wait_interrupt()
        return ()


@frozen
class QtestAddress:
    """What the DEVICE url `qtest:DIR[,addr=SLOT.FUNCTION][,resize=rows-first]` says."""

    directory: Path
    slot: int | None = None
    function: int = 0
    resize_rows_first: bool = False

    @classmethod
    def parse(cls, rest: str) -> QtestAddress:
        """Read what stands after `qtest:`; ValueError: it makes no sense."""
        directory, options = split_options("qtest", rest, "addr=SLOT.FUNCTION", RESIZE_OPTION)
        if not directory:
            raise ValueError("qtest: needs the directory with QEMU's socket")
        rows_first = resize_rows_first(options)
        if "addr" not in options:
            return cls(Path(directory), resize_rows_first=rows_first)
        found = re.fullmatch(r"([0-9a-fA-F]{1,2})(?:\.([0-7]))?", options["addr"])
        if not found or int(found[1], 16) >= _SLOTS:
            raise ValueError(f"qtest: {options['addr']!r} is no SLOT.FUNCTION: they look like 04.0")
        return cls(Path(directory), int(found[1], 16), int(found[2] or 0), rows_first)


@asynccontextmanager
async def open_qtest(manager: PortManager, rest: str) -> AsyncIterator[Driver]:
    """Drive the console of the QEMU process at what `QtestAddress` reads.

    Without an address it is the first console on bus 0. ValueError: `rest` makes no sense;
    DeviceError: the device cannot be used.
    """
    address = QtestAddress.parse(rest)
    memory = _map_memory(address.directory / "ram")
    with _connect(address.directory / "qtest") as sock:
        client = QtestClient(sock)
        async with open_background() as nursery:
            nursery.start_soon(client.run)
            slot = address.slot
            if slot is None:
                slot = await _find_console(client)
            transport = QtestTransport(client, memory, slot, address.function)
            rows_first = address.resize_rows_first
            async with open_pci(manager, transport, resize_rows_first=rows_first) as driver:
                yield driver


def _connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise DeviceError(f"cannot connect to {path}: {error.strerror}") from None
    return sock


def _map_memory(path: Path) -> memoryview:
    try:
        with path.open("r+b") as file:
            size = min(os.fstat(file.fileno()).st_size, _MEMORY_MAX)
            if size <= _MEMORY_START:
                raise DeviceError(f"{path} has only {size} bytes")
            return memoryview(mmap.mmap(file.fileno(), size))[_MEMORY_START:]
    except OSError as error:
        raise DeviceError(f"cannot map {path}: {error.strerror}") from None


async def _find_console(client: QtestClient) -> int:
    for slot in range(_SLOTS):
        probe = QtestTransport(client, memoryview(b""), slot, 0)
        if virtio_pci.is_console((await probe.read_config(0, 4)).to_bytes(4, "little")):
            return slot
    raise DeviceError("there is no virtio console on bus 0")

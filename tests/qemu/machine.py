"""A QEMU process without a guest, for one test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio

from tests.qemu import releases
from tests.qemu.listener import listener

#: The command of the QEMU that tests run; a fixture changes it.
QEMU = releases.NAME
RAM = "64M"
#: Space in /dev/shm for the memory of several machines.
_SHM_FREE = 512 << 20
#: cli; hlt; jmp back; and an endless row of hlt below.
FIRMWARE = b"\xf4" * 0xFFF0 + b"\xfa\xf4\xeb\xfd" + b"\xf4" * 12

#: How many doorbells each peer has, where there are some.
DOORBELLS = 4

CONSOLE = ("virtio-serial-pci,id=vs0,disable-legacy=on,addr=4",)


class Monitor:
    """A running QEMU's monitor, and the folder of its sockets."""

    def __init__(self, folder: Path, stream: trio.SocketStream) -> None:
        self.folder = folder
        self._stream = stream
        self._rest = b""

    async def connect(self, name: str) -> trio.SocketStream:
        """Connect to the chardev with that name."""
        return await trio.open_unix_socket(self.folder / name)

    async def command(self, execute: str, **arguments: object) -> Any:
        """Run a command of QEMU's monitor."""
        request = {"execute": execute, "arguments": arguments}
        await self._stream.send_all(json.dumps(request).encode() + b"\n")
        while True:
            answer = await self.receive()
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    async def plug(self, number: int, name: str, **where: str) -> None:
        """Add a port, whose chardev is a new socket of the port's name, to the (only) bus."""
        address = {"type": "unix", "data": {"path": str(self.folder / name)}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        await self.command("chardev-add", id=name, backend=backend)
        await self.command(
            "device_add",
            driver="virtserialport",
            chardev=name,
            name=name,
            id=f"p{number}",
            nr=number,
            **where,
        )

    async def unplug(self, number: int) -> None:
        """Take a port away."""
        await self.command("device_del", id=f"p{number}")

    async def greet(self) -> None:
        await self.receive()
        await self.command("qmp_capabilities")

    async def receive(self) -> Any:
        while b"\n" not in self._rest:
            data = await self._stream.receive_some()
            assert data, "QEMU has left"
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)


class Machine(Monitor):
    """A running QEMU without a guest."""

    def __init__(self, folder: Path, process: trio.Process, stream: trio.SocketStream) -> None:
        super().__init__(folder, stream)
        self.process = process

    @property
    def url_rest(self) -> str:
        return str(self.folder)


@asynccontextmanager
async def open_monitor(folder: Path) -> AsyncIterator[Monitor]:
    """Talk to the monitor of a QEMU that has a socket `qmp` in that folder."""
    async with await trio.open_unix_socket(folder / "qmp") as stream:
        monitor = Monitor(folder, stream)
        await monitor.greet()
        yield monitor


def chardev(folder: Path, name: str) -> list[str]:
    return ["-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off"]


def port(folder: Path, number: int, name: str = "", kind: str = "virtserialport") -> list[str]:
    """Arguments for a port, whose chardev is a socket `cNUMBER`."""
    options = f"{kind},chardev=c{number},nr={number},id=p{number}"
    return [*chardev(folder, f"c{number}"), "-device", options + (f",name={name}" if name else "")]


@contextmanager
def _memory(folder: Path) -> Iterator[None]:
    """Make the file of the machine's memory, in memory if there is space; DIR/ram leads to it.

    On a disk, the first access to a page takes a millisecond while the computer is busy.
    """
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shutil.disk_usage(shm).free < _SHM_FREE:
        yield
        return
    descriptor, path = tempfile.mkstemp(prefix="vconfs-ram-", dir=shm)
    os.close(descriptor)
    try:
        (folder / "ram").unlink(missing_ok=True)
        (folder / "ram").symlink_to(path)
        yield
    finally:
        os.unlink(path)


@asynccontextmanager
async def open_machine(
    folder: Path, arguments: Sequence[str], devices: Sequence[str] = CONSOLE
) -> AsyncIterator[Machine]:
    """Run QEMU with these devices, and these arguments after them.

    With a server of doorbells in the folder, the machine can ring them.
    """
    (folder / "hlt.bin").write_bytes(FIRMWARE)
    command = [QEMU, "-accel", "tcg", "-bios", f"{folder}/hlt.bin"]
    command += ["-nodefaults", "-display", "none", "-nic", "none"]
    command += ["-machine", "q35,memory-backend=ram", "-m", RAM]
    backend = f"memory-backend-file,id=ram,size={RAM},mem-path={folder}/ram,share=on"
    command += ["-object", backend, "-qtest-log", "none"]
    listeners = {name: listener(folder / name) for name in ("qtest", "qmp")}
    descriptors = {name: sock.fileno() for name, sock in listeners.items()}
    for name, number in descriptors.items():
        command += ["-chardev", f"socket,id={name},fd={number},server=on,wait=off"]
    command += ["-qtest", "chardev:qtest", "-mon", "chardev=qmp,mode=control"]
    for device in devices:
        command += ["-device", device]
    if (folder / "ivshmem").exists():
        command += ["-chardev", f"socket,id=iv,path={folder}/ivshmem"]
        command += ["-device", f"ivshmem-doorbell,vectors={DOORBELLS},chardev=iv,addr=1d"]
    with _memory(folder):
        process = await trio.lowlevel.open_process(
            [*command, *arguments],
            pass_fds=tuple(descriptors.values()),
            stdin=subprocess.DEVNULL,
        )
        try:
            for sock in listeners.values():
                sock.close()
            async with await trio.open_unix_socket(folder / "qmp") as monitor:
                machine = Machine(folder, process, monitor)
                await machine.greet()
                yield machine
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

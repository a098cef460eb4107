"""`vconfs mount --device sockets:GLOB` beside real hypervisors, whose guests know nothing of it.

Each guest is Debian's kernel with QEMU's own guest agent at one channel, and a shell at the other.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guest import guest as machine
from tests.guest import initramfs
from tests.mount.test_commands import folder, vconfs
from tests.qemu import releases
from tests.support import needs
from tests.support.booted import Booted

__all__ = ["folder"]

pytestmark = pytest.mark.limit(120)

AGENT, SHELL = "org.qemu.guest_agent.0", "org.example.shell"
MODULES = ("virtio_mmio", "virtio_console")
#: Seconds that a guest may take to boot and to answer.
ANSWER_SECONDS = 60


class Qemu(Booted):
    """A hypervisor with one guest; its sockets are in a folder of the guest's name."""

    def __init__(self, folder: Path, initrd: Path) -> None:
        super().__init__(folder)
        self._initrd = initrd
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting for its guest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = [
            word
            for number, name in enumerate((AGENT, SHELL), 1)
            for word in (
                *("-chardev", f"socket,id={name},path={self.folder}/{name},server=on,wait=off"),
                *("-device", f"virtserialport,nr={number},chardev={name},name={name}"),
            )
        ]
        append = f"{machine.PARAMETERS} {machine.MICROVM.parameters} guest.name={self.folder.name}"
        command = [
            *("setpriv", "--pdeathsig", "KILL", releases.NAME),
            *machine.MICROVM_MACHINE,
            *("-accel", "tcg", "-smp", "1", "-m", "256", "-nodefaults", "-no-reboot"),
            *("-nographic", "-nic", "none", "-serial", f"file:{self.folder}/console.log"),
            *("-kernel", str(machine.CACHE / "kernel"), "-initrd", str(self._initrd)),
            *("-append", append),
            *("-device", "virtio-serial-device", *ports),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kill it, which leaves its sockets behind."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def opened(port: Path) -> Iterator[int]:
    """Open a port, even if QEMU needs a while to accept the connection."""
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            descriptor = os.open(port, os.O_RDWR)
            break
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def answer(port: int, question: str) -> str:
    """Write a line, and return the line that comes back."""
    os.write(port, question.encode() + b"\n")
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([port], [], [], ANSWER_SECONDS)[0], line
        data = os.read(port, 1 << 16)
        assert data, "the guest has hung up"
        line += data
    return line.decode().strip()


def ping(port: int) -> None:
    """Ask the guest's agent, which answers only if it understands."""
    assert json.loads(answer(port, '{"execute": "guest-ping"}')) == {"return": {}}


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    needs.programs(*machine.PROGRAMS)
    if problem := machine.fetch():
        needs.cannot_run(problem)
    path, init = tmp_path / "initramfs.cpio", Path(__file__).parent / "init.agent"
    agent = Path(shutil.which("qemu-ga") or "")
    path.write_bytes(initramfs.build(machine.CACHE, init, wanted=MODULES, programs=[agent]))
    return path


@contextmanager
def started(folder: Path, initrd: Path) -> Iterator[Qemu]:
    qemu = Qemu(folder, initrd)
    try:
        qemu.start()
        yield qemu
    finally:
        qemu.kill()


@pytest.fixture
def web1(tmp_path: Path, initrd: Path) -> Iterator[Qemu]:
    with started(tmp_path / "vm" / "web1", initrd) as qemu:
        yield qemu


@pytest.fixture
def db1(tmp_path: Path, initrd: Path) -> Iterator[Qemu]:
    with started(tmp_path / "vm" / "db1", initrd) as qemu:
        yield qemu


def test_the_agents_of_two_guests_answer_through_files(
    web1: Qemu, db1: Qemu, folder: Path, tmp_path: Path
) -> None:
    vconfs("mount", "--device", f"sockets:{tmp_path}/vm/*/org.*", str(folder))
    web1_ports, db1_ports = (folder / name / "by-name" for name in ("web1", "db1"))
    with opened(db1_ports / SHELL) as other:
        assert answer(other, "one") == "db1 has one"
        with opened(web1_ports / AGENT) as agent, opened(web1_ports / SHELL) as shell:
            ping(agent)
            assert answer(shell, "two") == "web1 has two"
            listed = {port["name"]: port for port in ports_of(folder / "web1")}
            assert {name for name in listed if listed[name]["guest"]} == {AGENT, SHELL}
            web1.kill()
            assert os.read(agent, 100) == b""
            assert os.read(shell, 100) == b""
            assert answer(other, "three") == "db1 has three"
            web1.start()
            ping(agent)
            assert answer(shell, "four") == "web1 has four"
        assert answer(other, "five") == "db1 has five"
    with socket.socket(socket.AF_UNIX) as other_client:
        other_client.connect(str(db1.folder / AGENT))
        with pytest.raises(OSError, match="busy"):
            os.open(db1_ports / AGENT, os.O_RDWR)
    with opened(db1_ports / AGENT) as agent:
        ping(agent)
    vconfs("umount", str(folder))
    assert all(qemu.process and qemu.process.poll() is None for qemu in (web1, db1))


def ports_of(guest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in vconfs("ls", "--json", str(guest)).splitlines()]

"""A booted guest whose root is this machine's own. A worker in it does what tests ask for.

Its virtio consoles are DEVICES; each has two ports, whose chardevs are sockets of the same names.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import ClassVar

import trio
from attrs import frozen

from tests.guest import initramfs
from tests.qemu import releases
from tests.qemu.listener import listener
from tests.qemu.machine import Monitor, open_monitor
from tests.support import fetching
from tests.support.booted import Booted
from tests.support.remote.client import Remote, WorkerEnded, open_remote

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "guest"
#: The kernel's module vfio with the no-IOMMU mode.
UNSAFE_CACHE = ROOT / ".cache" / "noiommu"
#: Where the kernels are, by the releases that scripts/guest-kernel knows: this machine's own, and
#: Debian testing.
BOOT = {"own": CACHE, "testing": ROOT / ".cache" / "guest-testing"}
#: Seconds that it may take to boot, and to power off.
BOOT_SECONDS = 100
END_SECONDS = 20
#: What the guest is run with.
PROGRAMS = (releases.NAME, "apt-get", "busybox", "qemu-ga", "setpriv")

#: What builds the module with the no-IOMMU mode.
BUILDERS = ("gcc", "make", "strip")

#: In the guest: where to mount, and our command.
MOUNTPOINT = "/mnt/vcon"
VCONFS = f"{sys.executable} -m vconfs"


@frozen
class Console:
    """A virtio console of the guest's."""

    slot: str
    options: str = ""

    @property
    def address(self) -> str:
        return f"0000:00:{self.slot}.0"

    @property
    def bus(self) -> str:
        """The device that has QEMU's ports."""
        return f"v{self.slot}.0"

    @property
    def data(self) -> str:
        """The name of the first port, and of its chardev."""
        return f"org.example.data.{self.slot}"

    @property
    def agent(self) -> str:
        """The name of the second port, for a guest agent."""
        return f"org.qemu.guest_agent.{self.slot}"


VECTORS = Console("10")
LINE = Console("11", ",vectors=0")  # without MSI-X
KERNELS = Console("12")  # which the kernel's driver keeps
DEVICES = (VECTORS, LINE, KERNELS)


@frozen
class Hardware:
    """A kind of machine: QEMU's arguments, and parameters of the kernel."""

    arguments: Sequence[str]
    parameters: str = ""
    iommu: bool = False
    #: Folders with modules that replace those of the kernel.
    modules: Sequence[Path] = ()


#: A machine with a PCI bus and an IOMMU.
Q35 = Hardware(
    (
        *("-machine", "q35", "-device", "intel-iommu,intremap=on"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
    ),
    "intel_iommu=on",
    iommu=True,
)
#: One without an IOMMU, whose kernel has VFIO's no-IOMMU mode instead.
PLAIN = Hardware(
    ("-machine", "q35", "-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
    modules=(UNSAFE_CACHE,),
)
#: QEMU's arguments for a machine without PCI: its virtio devices are on virtio-mmio. By its ACPI
#: tables it has no PIC and no PIT, so its kernel sets up neither. If QEMU has them nevertheless, a
#: tick of the PIT can come as interrupt 0, which means a division by zero: the kernel panics before
#: it has a console. Without the PIT a kernel cannot find out how fast its clock is, so it is told
#: about that.
MICROVM_MACHINE = (
    *("-machine", "microvm,pic=off,pit=off", "-global", "virtio-mmio.force-legacy=false"),
)
MICROVM = Hardware(
    (*MICROVM_MACHINE, "-device", "virtio-9p-device,fsdev=root,mount_tag=root"),
    # That is not exact. Without `reliable` a kernel compares the clock with its own ticks, finds it
    # wrong, and takes the ticks as its clock.
    "tsc_early_khz=2000000 tsc=reliable",
)

#: The file with what QEMU writes to its standard error.
_MESSAGES = "qemu.log"

#: Runs a command that ends with us, however we end.
_RUN = ("setpriv", "--pdeathsig", "KILL")


@cache
def fetch(release: str = "own") -> str:
    """Fetch the kernel of a release if it is not there. Return what goes wrong, or ""."""
    folder = BOOT[release]
    return _fetch(folder / "kernel", "guest-kernel", release, folder)


@cache
def fetch_unsafe() -> str:
    """Build vfio with the no-IOMMU mode if it is not there. Return what goes wrong, or ""."""
    return fetch() or _fetch(UNSAFE_CACHE / "vfio.ko", "guest-noiommu", CACHE, UNSAFE_CACHE)


def _fetch(wanted: Path, script: str, *arguments: str | Path) -> str:
    return "" if wanted.exists() else fetching.fetch(script, *arguments)


class Guest(Booted):
    """A booted guest."""

    LOGS: ClassVar = {**Booted.LOGS, "QEMU's messages": _MESSAGES}

    def __init__(
        self, folder: Path, process: subprocess.Popen[bytes], worker: socket.socket
    ) -> None:
        super().__init__(folder)
        self._process = process
        self._worker = worker

    @asynccontextmanager
    async def open_remote(self) -> AsyncIterator[Remote]:
        """Do things in the guest; one at a time can."""
        async with open_remote(self._worker) as remote:
            yield remote

    @asynccontextmanager
    async def open_monitor(self) -> AsyncIterator[Monitor]:
        """Talk to QEMU's monitor; one at a time can."""
        async with open_monitor(self.folder) as monitor:
            yield monitor

    async def connect(self, name: str) -> trio.SocketStream:
        """Connect as the host of the port with that name."""
        return await trio.open_unix_socket(self.folder / name)

    async def wait_booted(self, seconds: float = BOOT_SECONDS) -> None:
        """Wait for the worker."""
        try:
            async with self.open_remote() as remote:
                await remote.ready(seconds)
            return
        except trio.TooSlowError:
            problem = f"has not booted in {seconds} s"
        except WorkerEnded:
            problem = "has ended before it had booted"
        raise AssertionError(f"the guest {problem}; {self.said}")

    async def end(self, status: int) -> None:
        """Have the worker end with this status; the guest ends with it."""
        async with self.open_remote() as remote:
            await remote.leave(status)

    def check_ended(self, status: int) -> None:
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        # See `init`: the status is in there, so that 0 and 1 are failures of the machinery.
        wanted = 2 * (16 + status) + 1
        assert code == wanted, f"QEMU ended with {code}; {self.said}"


@contextmanager
def open_guest(
    folder: Path,
    boot: Path,
    qemu: str = releases.NAME,
    arguments: Sequence[str] | None = None,
    *,
    consoles: Sequence[Console] = DEVICES,
    hardware: Hardware = Q35,
) -> Iterator[Guest]:
    """Boot a guest, which is not ready yet, with the QEMU of that command.

    It has these consoles, or what `arguments` say.
    """
    archive = folder / "initramfs.cpio"
    init = Path(__file__).parent / "init"
    archive.write_bytes(initramfs.build(boot, init, hardware.modules))

    def words(chardev: Chardev) -> list[str]:
        command = [qemu, *_machine(folder, boot, hardware)]
        command += ["-device", "isa-serial,chardev=worker,index=1"]
        command += [*chardev("qmp"), "-mon", "chardev=qmp,mode=control"]
        if arguments is not None:
            return [*command, *arguments]
        for device in consoles:
            command += [*chardev(device.data), *chardev(device.agent)]
            command += _console(device, iommu=hardware.iommu)
        return command

    with running(folder, words) as (process, worker):
        yield Guest(folder, process, worker)


#: Returns the arguments for a chardev with this name, a socket in the folder of the guest.
Chardev = Callable[[str], list[str]]


@contextmanager
def running(
    folder: Path, words: Callable[[Chardev], Sequence[str]]
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Run the QEMU of these words while the block runs.

    Yield it, and our side of its chardev `worker`. Its standard error is a file: when a host end is
    killed, QEMU writes hundreds of lines.
    """
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        inherited = [stack.enter_context(theirs)]

        def chardev(name: str) -> list[str]:
            inherited.append(stack.enter_context(listener(folder / name)))
            number = inherited[-1].fileno()
            return ["-chardev", f"socket,id={name},fd={number},server=on,wait=off"]

        command = [*_RUN, *words(chardev), "-chardev", f"socket,id=worker,fd={theirs.fileno()}"]
        descriptors = [sock.fileno() for sock in inherited]
        messages = stack.enter_context((folder / _MESSAGES).open("wb"))
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=messages, pass_fds=descriptors
        )
        for sock in inherited:
            sock.close()
        try:
            yield process, ours
        finally:
            process.kill()
            process.wait()


#: Parameters of every kernel. Without no_timer_check it panics if the machine is so busy that no
#: timer comes in time.
PARAMETERS = "earlyprintk=ttyS0 console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"


def _machine(folder: Path, boot: Path, hardware: Hardware) -> list[str]:
    append = f"{PARAMETERS} guest.folder={ROOT} guest.python={sys.executable}"
    append += " guest.module=tests.support.remote.worker guest.argument=/dev/ttyS1"
    return [
        *hardware.arguments,
        *("-accel", "tcg,tb-size=512", "-cpu", "Nehalem"),
        *("-smp", "1", "-m", "1024", "-nodefaults", "-no-reboot", "-nographic", "-nic", "none"),
        *("-kernel", str(boot / "kernel"), "-initrd", f"{folder}/initramfs.cpio"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-append", f"{append} {hardware.parameters}"),
        *("-serial", f"file:{folder}/console.log"),
    ]


def _console(device: Console, *, iommu: bool) -> Sequence[str]:
    common = "disable-legacy=on" + (",iommu_platform=on" if iommu else "")
    bus = device.bus
    ports = enumerate([device.data, device.agent], 1)
    return [
        "-device",
        f"virtio-serial-pci,id={bus[:-2]},{common},addr={device.slot}{device.options}",
        *(
            word
            for nr, name in ports
            for word in ("-device", f"virtserialport,bus={bus},nr={nr},chardev={name},name={name}")
        ),
    ]

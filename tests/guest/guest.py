"""A booted guest whose root is this machine's own: runs one Python module, and ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.guest import initramfs
from tests.qemu.machine import QEMU

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "guest"
#: From power-on to the end of the module, under emulation.
SECONDS = 120


def kernel() -> Path | None:
    """Fetch the kernel once; None: it cannot be had here."""
    if not (CACHE / "vmlinux").exists():
        command = [ROOT / "scripts/guest-kernel", CACHE]
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            return None
    return CACHE


def missing() -> bool:
    """Whether the tests cannot run: on a developer's machine they are skipped then."""
    programs = (QEMU, "apt-get", "busybox")
    return not os.environ.get("CI") and any(shutil.which(program) is None for program in programs)


class Guest:
    """A booted guest; its status is that of the module."""

    def __init__(self, folder: Path, process: trio.Process) -> None:
        self._folder = folder
        self._process = process

    async def check_ended_well(self) -> None:
        """Wait for the end; show the guest's console if it is a bad one."""
        with trio.move_on_after(SECONDS):
            await self._process.wait()
        code = self._process.returncode
        # See `init`: the status is in there, so that 0 and 1 are failures of the machinery.
        assert code == 2 * 16 + 1, f"QEMU ended with {code}; the guest said:\n{self.console}"

    @property
    def console(self) -> str:
        return (self._folder / "console.log").read_text(errors="replace")


@asynccontextmanager
async def open_guest(
    folder: Path,
    boot: Path,
    module: str,
    arguments: Sequence[str],
    descriptors: Sequence[int] = (),
) -> AsyncIterator[Guest]:
    """Boot with these QEMU arguments, and run a module of this repository as root.

    QEMU gets the `descriptors`, which the arguments may name.
    """
    (folder / "initramfs.cpio").write_bytes(
        await trio.to_thread.run_sync(initramfs.build, boot, Path(__file__).parent / "init")
    )
    share = "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
    append = "console=ttyS0 quiet panic=-1 mitigations=off intel_iommu=on"
    append += f" guest.folder={ROOT} guest.python={sys.executable} guest.module={module}"
    command = [QEMU, "-accel", "tcg,tb-size=512", "-machine", "q35", "-cpu", "Nehalem"]
    command += ["-smp", "1", "-m", "1024", "-nodefaults", "-no-reboot", "-nographic"]
    command += ["-nic", "none", "-kernel", str(boot / "vmlinux"), "-initrd"]
    command += [f"{folder}/initramfs.cpio", "-serial", f"file:{folder}/console.log"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-virtfs", share]
    command += ["-device", "intel-iommu,intremap=on", "-append", append, *arguments]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, pass_fds=tuple(descriptors)
    )
    try:
        yield Guest(folder, process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()

"""A booted Debian guest, whose console is a virtio console with ports.

The ports' chardevs are sockets of the ports' names. The worker in the guest does what tests ask
for.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from tests.debian import image
from tests.guest import guest
from tests.qemu import releases
from tests.support.remote.client import Remote

#: Where the console is.
ADDRESS = "0000:00:10.0"
CONSOLE = "org.example.console"
AGENT = "org.example.agent"
CLIPBOARD = "org.example.clipboard"
WHO = "org.example.who"
PORTS = (AGENT, CLIPBOARD, WHO)
#: The socket of the serial line /dev/ttyS2.
LINE = "line"
#: In the guest: where to mount, and the examples of the package.
MOUNTPOINT = "/mnt/vcon"
EXAMPLES = "/usr/share/doc/vconfs/examples"
#: Seconds that it may take to boot Debian, on a machine that does other things as well.
_BOOT_SECONDS = 4 * guest.BOOT_SECONDS
_END_SECONDS = 60


class Guest(guest.Guest):
    """A booted guest with Debian's own first program, and a disk that is its own."""

    async def wait_booted(self, seconds: float = _BOOT_SECONDS) -> None:
        """Wait for the worker, and for the mount."""
        await super().wait_booted(seconds)
        async with self.open_remote() as remote:
            await until(remote, "systemctl is-active mnt-vcon.mount", seconds)

    async def power_off(self) -> None:
        """Have systemd end the guest."""
        async with self.open_remote() as remote:
            await remote.run("systemctl --no-block poweroff")
        with trio.move_on_after(_END_SECONDS):
            await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
            return
        raise AssertionError(f"the guest does not end; {self.said}")

    def journal(self, *words: str) -> str:
        """Return the journal on the guest's disk as journalctl prints it."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            debugfs(self.folder / "disk.img", f"rdump /var/log/journal {folder}")
            command = "journalctl", "-q", "--no-pager", "-D", f"{folder}/journal", *words
            return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)


async def until(remote: Remote, command: str, seconds: float = 60) -> None:
    """Run a shell command in the guest again and again until it succeeds."""
    said = ""
    with trio.move_on_after(seconds):
        while True:
            status, said = await remote.try_to_run(command)
            if status == 0:
                return
            await trio.sleep(0.5)  # the guest's processor has other work as well
    raise AssertionError(f"{command} never succeeded; at last it said:\n{said}")


def debugfs(disk: Path, *commands: str) -> None:
    """Change or read the files of a disk that is not in use."""
    text = "".join(f"{command}\n" for command in commands)
    command = "debugfs", "-w", "-f", "-", str(disk)
    subprocess.run(command, input=text, capture_output=True, text=True, check=True)


@contextmanager
def open_guest(
    folder: Path, files: Mapping[str, str], enabled: Mapping[str, str]
) -> Iterator[Guest]:
    """Boot a guest that also has these files (path, text), and these units (unit, its wanter)."""
    disk = folder / "disk.img"
    subprocess.run(["cp", "--sparse=always", image.DISK, disk], check=True)
    _add(disk, files, enabled)

    def words(chardev: guest.Chardev) -> list[str]:
        command = [releases.NAME, *_machine(folder, disk)]
        command += ["-serial", "chardev:worker", *chardev(LINE), "-serial", f"chardev:{LINE}"]
        command += [*chardev(CONSOLE), "-device"]
        command += [f"virtconsole,bus=vs.0,nr=0,chardev={CONSOLE},name={CONSOLE}"]
        for nr, name in enumerate(PORTS, 1):
            device = f"virtserialport,bus=vs.0,nr={nr},chardev={name},name={name}"
            command += [*chardev(name), "-device", device]
        return command

    try:
        with guest.running(folder, words) as (process, worker):
            yield Guest(folder, process, worker)
    finally:
        disk.unlink()


def _add(disk: Path, files: Mapping[str, str], enabled: Mapping[str, str]) -> None:
    commands = []
    with tempfile.TemporaryDirectory() as name:
        for number, (path, text) in enumerate(files.items()):
            source = Path(name) / str(number)
            source.write_text(text)
            source.chmod(0o755 if text.startswith("#!") else 0o644)
            parents = [*map(str, Path(path).parents)][-2::-1]
            folders = [f"mkdir {parent}" for parent in parents]
            commands += [*folders, f"rm {path}", f"write {source} {path}"]
        for unit, wanter in enabled.items():
            folder = f"/etc/systemd/system/{wanter}.wants"
            template = f"{unit.partition('@')[0]}@.service" if "@" in unit else unit
            added = f"/etc/systemd/system/{unit}" in files
            home = "/etc/systemd/system" if added else "/lib/systemd/system"
            commands += [f"mkdir {folder}", f"symlink {folder}/{unit} {home}/{template}"]
        debugfs(disk, *commands)


def _machine(folder: Path, disk: Path) -> list[str]:
    # Without no_timer_check a kernel panics if the machine is so busy that no timer comes in time.
    append = "root=/dev/vda rw earlyprintk=ttyS0 console=ttyS0 quiet panic=-1 mitigations=off"
    append += " intel_iommu=on no_timer_check"
    console = "virtio-serial-pci,id=vs,disable-legacy=on,iommu_platform=on,addr=10"
    return [
        *("-accel", "tcg,tb-size=512", "-machine", "q35", "-cpu", "Nehalem"),
        *("-smp", "1", "-m", "1024", "-nodefaults", "-no-reboot", "-nographic", "-nic", "none"),
        *("-kernel", str(image.BASE / "vmlinux"), "-initrd", str(image.BASE / "initrd.img")),
        *("-append", append, "-device", "intel-iommu,intremap=on"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
        *("-serial", f"file:{folder}/console.log", "-device", console),
    ]

"""Findings on machines that are made of files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from vconfs.cli import _checks
from vconfs.cli._checks import Finding, Machine, examine, own_program, python_packages
from vconfs.cli._mount_table import MountState

CONSOLE = "0000:00:05.0"
#: A program that is set-uid root on every machine, as only root could make one.
SET_UID = "/usr/bin/su"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One that has everything; only root could make a device, so /dev/null is that of FUSE."""
    monkeypatch.setattr(_checks, "_FUSE", os.stat(os.devnull).st_rdev)
    for folder in ("dev/vfio", "etc", "usr/bin", "sbin", f"sys/bus/pci/devices/{CONSOLE}"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("kernel/iommu_groups/7", "bus/pci/drivers/vfio-pci", "class/virtio-ports/vport"):
        (tmp_path / "sys" / folder).mkdir(parents=True)
    (tmp_path / "dev/fuse").symlink_to(os.devnull)
    for file in ("dev/vfio/vfio", "dev/vsock", "dev/log", "sbin/mount.fuse"):
        (tmp_path / file).touch()
    (tmp_path / "usr/bin/vconfs").touch()
    (tmp_path / "etc/fuse.conf").write_text("# a word\nuser_allow_other\n")
    console = tmp_path / "sys/bus/pci/devices" / CONSOLE
    (console / "vendor").write_text("0x1af4\n")
    (console / "device").write_text("0x1043\n")
    (console / "driver").symlink_to("../../drivers/vfio-pci")
    return Machine(
        root=tmp_path,
        uid=1000,
        kernel="6.1.0-13-amd64",
        program=Path("/opt/venv/bin/vconfs"),
        find_program={"fusermount3": SET_UID}.get,
        mounts={Path("/mnt/vcon"): MountState.ALIVE},
    )


def found(machine: Machine, check: str) -> list[Finding]:
    return [finding for finding in examine(machine) if finding.check == check]


def test_a_mount_helper_of_its_own_needs_no_other(machine: Machine) -> None:
    (machine.root / "sbin/mount.fuse").rename(machine.root / "sbin/mount.fuse.vconfs")
    (machine.root / "usr/bin/vconfs").unlink()
    states = {finding.check: finding.state for finding in examine(machine)}
    assert states["mount-command"] == "ok"


def test_a_machine_that_has_everything(machine: Machine) -> None:
    assert {finding.state for finding in examine(machine)} == {"ok"}
    assert len({finding.check for finding in examine(machine)}) == 13
    assert not any(finding.advice for finding in examine(machine))


Change = Callable[[Machine], Machine]


def bare(mode: str = "", pages: int = 0, mounts: str = "") -> Change:
    """A machine without an IOMMU, with VFIO's no-IOMMU mode Y, N, or not there."""
    writes = {
        "sys/module/vfio/parameters/enable_unsafe_noiommu_mode": mode,
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": str(pages),
        "proc/self/mountinfo": mounts,
        "sys/kernel/iommu_groups/7/name": "vfio-noiommu\n" if mode == "Y" else "",
    }

    def change(machine: Machine) -> Machine:
        if mode != "Y":
            (machine.root / "sys/kernel/iommu_groups/7").rename(machine.root / "gone")
        for name, text in writes.items():
            if text:
                (machine.root / name).parent.mkdir(parents=True, exist_ok=True)
                (machine.root / name).write_text(text)
        return machine

    return change


HUGETLBFS = "30 25 0:27 / /dev/hugepages rw shared:15 - hugetlbfs none rw,pagesize=2M\n"
PROC = "30 25 0:27 / /proc rw - proc none rw\n"


def without(path: str) -> Change:
    """A machine that has not got this."""

    def change(machine: Machine) -> Machine:
        (machine.root / path).rename(machine.root / "gone")
        return machine

    return change


def writing(path: str, text: str) -> Change:
    def change(machine: Machine) -> Machine:
        (machine.root / path).unlink()
        (machine.root / path).write_text(text)
        return machine

    return change


def forbidding(path: str) -> Change:
    """A machine where we may not use this."""
    return lambda machine: attrs.evolve(machine, can_use=lambda file: not str(file).endswith(path))


def being(**fields: object) -> Change:
    return lambda machine: attrs.evolve(machine, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "check", "state", "message", "advice"),
    [
        (being(kernel="4.19.0"), "kernel", "missing", "Linux 4.19.0 is too old", "5.1"),
        (without("dev/fuse"), "fuse-device", "missing", "there is no /dev/fuse", "modprobe fuse"),
        (writing("dev/fuse", ""), "fuse-device", "missing", "not the FUSE device", "mknod -m 666"),
        (forbidding("dev/fuse"), "fuse-device", "missing", "no permission", "chmod 666 /dev/fuse"),
        (
            being(find_program=lambda name: None),
            "fusermount3",
            "missing",
            "no fusermount3",
            "fuse3",
        ),
        (
            being(find_program=lambda name: None, uid=0),
            *("fusermount3", "optional", "there is no fusermount3", "apt-get install fuse3"),
        ),
        (
            being(find_program=lambda name: "/bin/true"),
            *("fusermount3", "missing", "/bin/true is not set-uid root", "chmod u+s /bin/true"),
        ),
        (without("sbin/mount.fuse"), "mount-command", "optional", "not find mount.fuse", "fuse3"),
        (
            without("usr/bin/vconfs"),
            *("mount-command", "optional", "do not find vconfs"),
            "ln -s /opt/venv/bin/vconfs /usr/local/bin/vconfs",
        ),
        (without("etc/fuse.conf"), "allow-other", "optional", "only root", "user_allow_other"),
        (
            writing("etc/fuse.conf", "#user_allow_other\n"),
            *("allow-other", "optional", "only root", "user_allow_other"),
        ),
        (without("sys/kernel/iommu_groups/7"), "iommu", "optional", "no IOMMU", "intel_iommu=on"),
        (without("sys/kernel/iommu_groups"), "iommu", "optional", "no IOMMU", "intel_iommu=on"),
        (bare(), "iommu", "optional", "no IOMMU", "modprobe vfio enable_unsafe_noiommu_mode=1"),
        (bare("N"), "iommu", "optional", "no IOMMU", "; as root: echo Y >/sys/module/vfio/param"),
        (bare("Y"), "iommu", "ok", "there is no IOMMU, and VFIO does without", ""),
        (bare(), "huge-pages", "optional", "no huge pages", "echo 32 >/proc/sys/vm/nr_hugepages"),
        (
            bare("Y", 32, PROC),
            *("huge-pages", "optional", "no hugetlbfs is mounted"),
            "mount -t hugetlbfs none /dev/hugepages",
        ),
        (bare("Y", 32, HUGETLBFS), "huge-pages", "ok", "32 huge pages", ""),
        (
            without("sys/bus/pci/drivers/vfio-pci"),
            *("vfio", "optional", "no VFIO driver", "modprobe vfio-pci"),
        ),
        (forbidding("vfio/vfio"), "vfio", "optional", "no permission", "chmod 666 /dev/vfio/vfio"),
        (
            without(f"sys/bus/pci/devices/{CONSOLE}/driver"),
            *("pci-console", "optional", "without a driver", f"vconfs bind {CONSOLE}"),
        ),
        (without(f"sys/bus/pci/devices/{CONSOLE}"), "pci-console", "optional", "no virtio", ""),
        (without("sys/class/virtio-ports"), "kernel-ports", "optional", "no ports", "modprobe"),
        (without("dev/log"), "log", "optional", "no /dev/log", "--log FILE"),
        (without("dev/vsock"), "vsock", "optional", "no /dev/vsock", "modprobe vhost_vsock"),
        (
            being(mounts={Path("/mnt/vcon"): MountState.DEAD}),
            *("mount", "optional", "the mount /mnt/vcon: its daemon has ended", "vconfs umount"),
        ),
        (
            being(mounts={Path("/mnt/vcon"): MountState.FOREIGN}),
            *("mount", "ok", "/mnt/vcon is mounted by another user, for that user", ""),
        ),
    ],
)
def test_missing_things_are_reported_with_a_remedy(
    machine: Machine, change: Change, check: str, state: str, message: str, advice: str
) -> None:
    (finding,) = found(change(machine), check)
    assert finding.state == state
    assert message in finding.message
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("installed", "state", "message"),
    [
        ("2.5", "ok", "thing 2.5"),
        ("1.9", "missing", "thing 1.9 is not >=2"),
        (None, "missing", "thing is not installed"),
    ],
)
def test_python_packages(installed: str | None, state: str, message: str) -> None:
    requirements = ["thing>=2", 'pytest; extra == "test"']
    (finding,) = python_packages(requirements, lambda name: installed, lambda: None)
    assert (finding.state, finding.message) == (state, message)
    assert finding.advice == ("" if state == "ok" else "pip install 'thing>=2'")


BUILD = "apt-get install gcc pkg-config libfuse3-dev python3-dev; pip install "


@pytest.mark.parametrize(
    ("installed", "error", "message", "advice"),
    [
        (None, None, "pyfuse3 is not installed", f"{BUILD}'pyfuse3>=3.5'"),
        ("3.4", None, "pyfuse3 3.4 is not >=3.5", f"{BUILD}'pyfuse3>=3.5'"),
        (
            "3.5",
            "no libfuse3.so.3",
            "pyfuse3 3.5 cannot be loaded: no libfuse3.so.3",
            f"{BUILD}--force-reinstall --no-cache-dir 'pyfuse3>=3.5'",
        ),
    ],
)
def test_it_names_what_the_build_of_pyfuse3_needs(
    installed: str | None, error: str | None, message: str, advice: str
) -> None:
    (finding,) = python_packages(["pyfuse3>=3.5"], lambda name: installed, lambda: error)
    assert finding == Finding("python-package", "missing", message, advice)


@pytest.mark.parametrize("words", [["mount", "/mnt"], ["host"], ["--help"]])
def test_other_commands_lead_to_it_where_packages_are_missing(words: list[str]) -> None:
    script = (
        "import sys; sys.modules['pyfuse3'] = sys.modules['trio'] = None\n"
        f"from vconfs.cli import main; main({words})"
    )
    command = sys.executable, "-c", script
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(": `vconfs doctor` says how to get it\n")


@pytest.mark.parametrize("called", ["/opt/venv/bin/vconfs", "/src/vconfs/__main__.py"])
def test_the_program_that_it_links_to_can_be_run(
    called: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    assert own_program(called) == Path("/opt/venv/bin/vconfs")


def test_it_runs_where_packages_are_missing() -> None:
    missing = "pyfuse3", "trio", "rich", "systemd_watchdog"
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "from vconfs.cli import main; main(['doctor'])"
    )
    command = sys.executable, "-c", script
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Linux" in done.stdout

"""The units: how well they lock us up, and that we can live there."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_analyze = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="needs systemd-analyze, as systemd brings it"
)

#: Becomes the rest of its arguments, which may not make memory executable: PR_SET_MDWE.
LOCKED = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit("this kernel has no PR_SET_MDWE")
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Unit(ConfigParser):
    """A unit's settings; of those that are given twice, all."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=("=",))
        self.path = path
        self.text = path.read_text()
        self.read_string(self.text)

    def optionxform(self, name: str) -> str:
        return name

    def all(self, name: str) -> list[str]:
        return re.findall(rf"^{name}=(.*)$", self.text, re.MULTILINE)


FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = {path.name.partition("@")[0]: Unit(path) for path in sorted(FOLDER.glob("*.service"))}


@needs_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_exposure_is_below_3(unit: str) -> None:
    path = str(UNITS[unit].path)
    command = "systemd-analyze", "security", "--offline=true", "--no-pager", path
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert exposure
    assert float(exposure[1]) < 3


@pytest.mark.parametrize("unit", UNITS)
def test_readiness_and_watchdog_are_asked_for(unit: str) -> None:
    service = UNITS[unit]["Service"]
    assert (service["Type"], service["Restart"]) == ("notify", "on-failure")
    assert int(service["WatchdogSec"]) > 0
    assert service["RestartPreventExitStatus"] == "2"  # a usage error


@pytest.mark.parametrize("unit", UNITS)
def test_a_reload_opens_files_anew(unit: str) -> None:
    assert UNITS[unit]["Service"]["ExecReload"] == "kill -HUP $MAINPID"


def test_the_mount_is_visible_to_all_users() -> None:
    """None of the settings that give a service a mount namespace of its own."""
    service = UNITS["vconfs"]["Service"]
    namespaces = re.compile(
        "Protect(System|Home|Proc|Control|Kernel).*|Private(Devices|Tmp|IPC)|ProcSubset|.*Paths"
        "|DynamicUser|Root.*|Temporary.*|(Bind|Mount|Extension).*|(State|Cache|Logs)Directory"
    )
    assert not {name for name in service if namespaces.fullmatch(name)}
    assert service["PrivateMounts"] == "no"


def calls_in(sets: str) -> set[str]:
    """All system calls of sets like "@mount @resources"."""
    command = "systemd-analyze", "syscall-filter", "--no-pager"
    calls: set[str] = set()
    for name in sets.split():
        if not name.startswith("@"):
            calls.add(name)
            continue
        shown = subprocess.run([*command, name], capture_output=True, text=True, check=True)
        words = [line.strip() for line in shown.stdout.splitlines()[1:]]
        calls |= calls_in(" ".join(word for word in words if word and not word.startswith("#")))
    return calls


@contextmanager
def locked_up(unit: Unit, folder: Path, config: str) -> Iterator[None]:
    """Run a unit's command as the unit does, once it is ready; SIGTERM has to end it in order.

    What system calls it made is then compared with those that the unit allows.
    """
    capabilities = unit["Service"]["CapabilityBoundingSet"].lower().replace("cap_", ",+")
    trace = folder / "trace"
    (folder / "vcon.toml").write_text(config)
    start = unit["Service"]["ExecStart"].replace("/etc/vconfs/%i", f"{folder}/vcon")
    words = start.replace("/mnt/%i", f"{folder}/mnt").removeprefix("vconfs ").split()
    command = [
        *("strace", "-D", "-f", "-q", "-o", str(trace)),
        *("setpriv", "--no-new-privs", f"--bounding-set=-all{capabilities}"),
        *(sys.executable, "-c", LOCKED, sys.executable, "-m", "vconfs", *words),
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(str(folder / "notify"))
        told = {**os.environ, "NOTIFY_SOCKET": f"{folder}/notify", "WATCHDOG_USEC": "500000"}
        with subprocess.Popen(command, env=told, stderr=subprocess.PIPE) as daemon:
            try:
                while b"READY=1" not in manager.recv(1000):
                    pass
                yield
                daemon.terminate()
                assert daemon.wait(20) == 0
            finally:
                daemon.kill()
    while not re.search(rf"^{daemon.pid} +\+\+\+ ", trace.read_text(), re.MULTILINE):
        pass  # strace is still writing
    # What comes before that is what systemd does itself.
    _, _, ours = trace.read_text().partition("prctl(0x41")
    made = set(re.findall(r"^[0-9]+ +([a-z0-9_]+)\(", ours, re.MULTILINE))
    allowed, forbidden = unit.all("SystemCallFilter")
    assert {"sendto", "read"} <= made
    assert made <= calls_in(allowed) - calls_in(forbidden.removeprefix("~"))


@needs_analyze
def test_the_mount_needs_no_more_than_its_unit_allows(tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    config = f'port = ["a=unix:{tmp_path}/sock", "=pty,console"]'
    try:
        with locked_up(UNITS["vconfs"], tmp_path, config):
            exchange(folder / "vcon0", tmp_path / "sock")
    finally:
        if folder.is_mount():
            subprocess.run(["umount", "-l", str(folder)], check=False)


@needs_analyze
def test_the_host_end_needs_no_more_than_its_unit_allows(tmp_path: Path) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    url = f"stream:unix:{tmp_path}/device"
    config = f'listen = "{url}"\nport = "a=unix:{tmp_path}/sock"'
    with locked_up(UNITS["vconfs-host"], tmp_path, config):
        vconfs = sys.executable, "-m", "vconfs"
        subprocess.run([*vconfs, "mount", "--device", url, str(folder)], check=True)
        try:
            exchange(folder / "vcon0", tmp_path / "sock")
        finally:
            subprocess.run([*vconfs, "umount", str(folder)], check=True)


def exchange(port: Path, socket_path: Path) -> None:
    """Send something through a port, both ways."""
    with open(port, "r+b", buffering=0) as guest, socket.socket(socket.AF_UNIX) as host:
        host.connect(str(socket_path))
        while os.getxattr(port, "user.host") != b"1":
            pass
        assert guest.write(b"out") == 3
        assert host.recv(3) == b"out"
        host.sendall(b"in")
        assert guest.read(2) == b"in"

"""Effects of signals on each kind of daemon: it goes on, or it ends in order."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from attrs import define, evolve

from tests.support.waiting import block_until

from .test_commands import VCONFS, daemon_of, folder, mounts, vconfs, wait_for_file
from .test_starting import exchange

__all__ = ["folder"]


@define
class Daemon:
    """A daemon under test, and what it has that must not be left behind."""

    pid: int
    log: Path
    serves: Callable[[], object]
    leftovers: Callable[[], object]

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def logged(self, text: str) -> None:
        """Wait until the log has a line with this text."""
        self.wait_until(lambda: self.log.exists() and text in self.log.read_text())

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for something that the daemon does, while it lives."""
        while not condition():
            os.kill(self.pid, 0)
            time.sleep(0.005)

    def ends_by(self, number: int) -> None:
        """Send a signal, and wait for the end."""
        descriptor = os.pidfd_open(self.pid)
        try:
            self.kill(number)
            assert select.select([descriptor], [], [], 20)[0]
        finally:
            os.close(descriptor)


@contextmanager
def _running(command: list[str], ready: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["env", "--default-signal", *command], stderr=subprocess.PIPE) as process:
        try:
            wait_for_file(ready, process)
            yield process
        finally:
            process.kill()


@contextmanager
def _mount(folder: Path, place: Path, foreground: bool) -> Iterator[Daemon]:
    log = place / "log"
    ports = "--port", "e=echo", "--port", f"f=file:{place}/file", "--port", f"u=unix:{place}/sock"
    words = "mount", "--log", str(log), *ports, str(folder)

    def leftovers() -> object:
        return mounts(folder) or (place / "sock").exists()

    def daemon(pid: int) -> Daemon:
        return Daemon(pid, log, lambda: exchange(folder / "vcon0"), leftovers)

    if foreground:
        with _running([*VCONFS, *words, "-f"], folder / "vcon2") as process:
            yield daemon(process.pid)
            if not leftovers():
                assert process.wait(20) == 0
    else:
        vconfs(*words)
        pid = daemon_of(folder)
        try:
            yield daemon(pid)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def _host(place: Path, *more: str, leftovers: Callable[[], object] = list) -> Iterator[Daemon]:
    log, control = place / "log", place / "control"
    ports = "--port", f"f=file:{place}/file", "--port", f"u=unix:{place}/sock"
    words = "--listen", f"stream:unix:{place}/device", "--control", str(control)

    def left() -> object:
        paths = [name for name in ("sock", "device", "control") if (place / name).exists()]
        return paths or leftovers()

    command = [*VCONFS, "host", "--log", str(log), *words, *ports, *more]
    with _running(command, place / "device") as process:
        yield Daemon(process.pid, log, lambda: vconfs("ctl", str(control), "list"), left)
        if not left():
            assert process.wait(20) == 0


@contextmanager
def _host_with_files(folder: Path, place: Path) -> Iterator[Daemon]:
    """A host end with a mount, whose files a guest's mount answers at."""
    guest = place / "guest"
    guest.mkdir()
    words = "--mount", str(folder), "--port", "m=mount"
    with _host(place, *words, leftovers=lambda: mounts(folder)) as daemon:
        vconfs("mount", "--device", f"stream:unix:{place}/device", str(guest))
        try:
            yield evolve(daemon, serves=lambda: exchange_across(folder, guest))
        finally:
            subprocess.run(["umount", "-l", guest], check=True, timeout=10)


def exchange_across(folder: Path, guest: Path) -> None:
    """Send a line each way between the file of a host end and that of its guest."""
    ours, theirs = folder / "device" / "by-name" / "m", guest / "by-name" / "m"
    with open(ours, "r+b", buffering=0) as host, open(theirs, "r+b", buffering=0) as port:
        block_until(lambda: os.getxattr(theirs, "user.host") == b"1")
        block_until(lambda: os.getxattr(ours, "user.guest") == b"1")
        for one, other in ((host, port), (port, host)):
            one.write(b"hello\n")
            assert other.readline() == b"hello\n"


@pytest.fixture(params=["mount -f", "mount", "host", "host --mount"])
def daemon(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Daemon]:
    kinds = {
        "mount -f": lambda: _mount(folder, tmp_path, foreground=True),
        "mount": lambda: _mount(folder, tmp_path, foreground=False),
        "host": lambda: _host(tmp_path),
        "host --mount": lambda: _host_with_files(folder, tmp_path),
    }
    with kinds[request.param]() as running:
        yield running


def test_a_hang_up_opens_the_log_anew(daemon: Daemon) -> None:
    for number in range(2):
        daemon.log.rename(daemon.log.with_suffix(f".{number}"))
        daemon.kill(signal.SIGHUP)
        daemon.logged("SIGHUP: the log and the files of ports are opened anew")
        daemon.serves()


def test_a_hang_up_opens_the_files_of_ports_anew(daemon: Daemon, tmp_path: Path) -> None:
    _hang_up(daemon, tmp_path / "file")


def _hang_up(daemon: Daemon, file: Path) -> None:
    """Send HUP, and wait until the file of a port is open anew."""
    file.rename(file.with_suffix(".old"))
    daemon.kill(signal.SIGHUP)
    daemon.wait_until(file.exists)


def test_a_log_that_cannot_be_opened_anew_goes_on_as_it_was(daemon: Daemon, tmp_path: Path) -> None:
    old = daemon.log.rename(tmp_path / "old")
    daemon.log.mkdir()
    daemon.kill(signal.SIGHUP)
    daemon.log = old
    daemon.logged("cannot be opened anew: Is a directory")
    daemon.serves()


def test_usr1_writes_the_tasks_to_the_log(daemon: Daemon) -> None:
    daemon.kill(signal.SIGUSR1)
    daemon.logged("vconfs.host.host.Host._serve, in ")
    daemon.serves()


@pytest.mark.parametrize("number", [signal.SIGPIPE, signal.SIGXFSZ])
def test_signals_that_are_ignored(daemon: Daemon, number: signal.Signals) -> None:
    for _ in range(3):
        daemon.kill(number)
    daemon.serves()


#: TERM and INT, QUIT, and some of those that no one has a use for.
ENDING = [
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGXCPU,
    signal.SIGRTMIN,
]


@pytest.mark.parametrize("number", ENDING)
def test_signals_that_end_a_daemon_in_order(daemon: Daemon, number: signal.Signals) -> None:
    daemon.ends_by(number)
    assert not daemon.leftovers()


def test_a_full_log_stops_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """As at the limit of a file's size, where the kernel sends XFSZ as well."""
    size = daemon.log.stat().st_size
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
    for _ in range(3):
        daemon.kill(signal.SIGUSR1)
        _hang_up(daemon, tmp_path / "file")  # so that the log was written to
        daemon.serves()
    resource.prlimit(
        daemon.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    daemon.kill(signal.SIGHUP)
    daemon.logged("lines are missing here: they could not be written")


@pytest.mark.parametrize("kind", ["mount", "host"])
def test_the_output_of_a_daemon_in_the_foreground_is_not_read(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    """Its standard error is a pipe without a reader: SIGPIPE."""
    context = _mount(folder, tmp_path, foreground=True) if kind == "mount" else _host(tmp_path)
    with context as daemon:
        for number in (1, 2):
            descriptor = os.open(f"/proc/{daemon.pid}/fd/{number}", os.O_WRONLY)
            os.close(descriptor)
        daemon.kill(signal.SIGHUP)
        daemon.logged("SIGHUP")
        daemon.serves()


def test_a_terminal_that_is_closed_leaves_a_mount_in_the_foreground(folder: Path) -> None:
    window, terminal = os.openpty()
    command = ["setsid", "--ctty", "env", "--default-signal", *VCONFS, "mount", "-f"]
    command += ["--port", "e=echo", str(folder)]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        try:
            os.close(terminal)
            wait_for_file(folder / "vcon0", process)
            os.close(window)  # the kernel sends HUP to the leader of the session
            exchange(folder / "vcon0")
            process.send_signal(signal.SIGHUP)
            exchange(folder / "vcon0")
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert mounts(folder) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_what_ends_a_mount_that_waits_for_its_device_ends_all_of_it(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(20)
        listener.bind(f"{tmp_path}/silent")
        listener.listen()
        words = "mount", "--device", f"stream:unix:{tmp_path}/silent", str(folder)
        with subprocess.Popen(["env", "--default-signal", *VCONFS, *words]) as mount:
            device, _ = listener.accept()
            with device:
                device.settimeout(5)  # less than what it would wait for a hello
                mount.send_signal(number)
                while device.recv(4096):
                    pass
            assert mount.wait(20) == -number
    assert mounts(folder) == []


@pytest.mark.parametrize("where", ["--log", "-o"])
@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("none/log", "cannot open the log {path}: No such file or directory"),
        ("mnt/log", "the log {path} is below {folder}: choose another place"),
    ],
)
def test_a_log_that_cannot_be_opened_is_an_error_of_one_line(
    folder: Path, tmp_path: Path, where: str, log: str, why: str
) -> None:
    path = tmp_path / log
    words = ["--log", str(path)] if where == "--log" else ["-o", f"log={path}"]
    assert vconfs("mount", *words, str(folder), code=1) == why.format(path=path, folder=folder)
    assert mounts(folder) == []


def test_a_host_whose_log_cannot_be_opened(tmp_path: Path) -> None:
    listen = f"stream:unix:{tmp_path}/device"
    said = vconfs("host", "--log", str(tmp_path), "--listen", listen, code=1)
    assert said == f"cannot open the log {tmp_path}: Is a directory"
    assert not (tmp_path / "device").exists()


def test_the_log_of_a_mount_in_the_background_has_its_errors(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    vconfs("mount", "-o", f"log={log}", "--port", "p=exec:no-such-program", str(folder))
    (folder / "vcon0").write_bytes(b"now")
    while "(127)" not in (said := log.read_text()):
        assert mounts(folder)
    vconfs("umount", str(folder))
    assert "no-such-program: not found" in said  # the shell, to standard error
    assert "warning: port 0: 'no-such-program' was not found (127)\n" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a /dev of its own")
def test_a_mount_in_the_background_logs_to_the_systems_log(folder: Path, tmp_path: Path) -> None:
    """In a mount namespace with a /dev whose log is ours."""
    devices = tmp_path / "dev"
    devices.mkdir()
    script = f"""
        set -e
        mount -t tmpfs none {devices}
        cp -a /dev/null /dev/fuse {devices}
        mount --move {devices} /dev
        ln -s /proc/self/fd /dev/fd
        {sys.executable} - <<'END'
import socket, subprocess
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
    log.bind("/dev/log")
    log.settimeout(10)
    vconfs = "{sys.executable}", "-m", "vconfs"
    mount = "mount", "--port", "p=exec:no-such-program", "{folder}"
    subprocess.run([*vconfs, *mount], check=True)
    with open("{folder}/vcon0", "wb") as port:
        port.write(b"now")
        port.flush()
        print(log.recv(1000).decode())
    subprocess.run([*vconfs, "umount", "{folder}"], check=True)
END
    """
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, _, message = done.stdout.partition(": ")
    assert re.fullmatch(r"<28>vconfs\[\d+\]", head)
    assert message == "port 0: 'no-such-program' was not found (127)\n"

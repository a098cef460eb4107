"""Which privileges the daemons drop, and what goes on working without them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from attrs import frozen

from tests.support.waiting import block_until
from vconfs import fuse
from vconfs.system.privileges import ALWAYS_KEPT, Capability

from .test_commands import VCONFS, daemon_of, folder, mounts, vconfs, wait_for_end

__all__ = ["folder"]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which has privileges")

#: A command that reports its own privileges.
REPORT = "grep -E '^(NoNewPrivs|Cap)' /proc/self/status"


@frozen
class Privileges:
    """The privileges of a thread, as /proc shows them."""

    permitted: int
    effective: int
    bounding: int
    no_new: bool

    @classmethod
    def parse(cls, status: str) -> Privileges:
        fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        permitted, effective, bounding = (
            int(fields[f"Cap{it}"], 16) for it in ("Prm", "Eff", "Bnd")
        )
        return cls(permitted, effective, bounding, fields["NoNewPrivs"] == "1")


OURS = Privileges.parse(Path("/proc/self/status").read_text())


def privileges_of(pid: int) -> Privileges:
    """The privileges of a process, which are those of each of its threads."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    (found,) = {Privileges.parse((thread / "status").read_text()) for thread in threads}
    return found


def kept(*also: Capability, no_new: bool) -> Privileges:
    """What a daemon keeps that we start."""
    mask = OURS.permitted & sum(1 << capability for capability in {*ALWAYS_KEPT, *also})
    return Privileges(mask, mask, OURS.bounding, no_new)


@frozen
class HostEnd:
    """A host end that runs as a program."""

    pid: int
    folder: Path

    @property
    def device(self) -> str:
        return f"stream:unix:{self.folder}/device"

    def ctl(self, *words: str) -> str:
        return vconfs("ctl", f"{self.folder}/ctl", *words)


StartHost = Callable[..., AbstractContextManager[HostEnd]]


@pytest.fixture
def start_host(tmp_path: Path) -> StartHost:
    @contextmanager
    def start(*options: str, listen: str = f"stream:unix:{tmp_path}/device") -> Iterator[HostEnd]:
        """Run a host end, which has to end in order."""
        where = "--listen", listen, "--control", f"{tmp_path}/ctl"
        command = [*VCONFS, "host", *where, *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as host:
            try:
                assert host.stderr is not None
                assert host.stderr.readline() == f"vconfs: listening on {listen}\n"
                yield HostEnd(host.pid, tmp_path)
                host.terminate()
                assert host.wait(10) == 0
                assert "Traceback" not in host.stderr.read()
            finally:
                host.kill()

    return start


@contextmanager
def mount_of(where: Path, *options: str) -> Iterator[int]:
    """Mount in the background; SIGTERM has to end it and leave nothing behind."""
    vconfs("mount", *options, str(where))
    pid = daemon_of(where)
    yield pid
    daemon = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    wait_for_end(daemon)
    assert mounts(where) == []


# --- what is dropped ----------------------------------------------------------------------


def test_a_host_end_keeps_only_what_its_ports_need(start_host: StartHost) -> None:
    with start_host("--port", "a=null") as host:
        assert privileges_of(host.pid) == kept(no_new=True)


def test_programs_of_the_start_may_gain_privileges(start_host: StartHost) -> None:
    with start_host("--port", "a=exec:cat") as host:
        assert privileges_of(host.pid) == kept(no_new=False)
    with start_host(listen="stream:exec:cat >/dev/null") as host:
        assert privileges_of(host.pid) == kept(no_new=False)


def test_a_host_end_with_packets_keeps_the_right_to_large_ones(
    start_host: StartHost, tmp_path: Path
) -> None:
    with start_host("--port", f"a=seqpacket:{tmp_path}/a") as host:
        assert privileges_of(host.pid) == kept(Capability.NET_ADMIN, no_new=True)


def test_a_host_end_keeps_all_if_asked_to(start_host: StartHost) -> None:
    with start_host("--keep-privileges") as host:
        assert privileges_of(host.pid) == OURS


@root_only
def test_a_mount_by_root_keeps_what_it_needs_to_unmount(folder: Path) -> None:
    with mount_of(folder, "--port", "a=pty") as pid:
        assert privileges_of(pid) == kept(Capability.SYS_ADMIN, no_new=True)
    with mount_of(folder, "--port", "a=exec:cat") as pid:
        assert privileges_of(pid) == kept(Capability.SYS_ADMIN, no_new=False)
    with mount_of(folder, "--keep-privileges") as pid:
        assert privileges_of(pid) == OURS


def test_a_mount_that_another_program_unmounts_needs_nothing_for_it(folder: Path) -> None:
    theirs = fuse.mount(folder)
    try:
        command = [*VCONFS, "mount", "-f", f"/dev/fd/{theirs.device}"]
        with subprocess.Popen(command, pass_fds=[theirs.device]) as daemon:
            block_until(lambda: privileges_of(daemon.pid).no_new or daemon.poll() is not None)
            found = privileges_of(daemon.pid)
            daemon.kill()
        assert found == kept(no_new=True)
    finally:
        theirs.close()


# --- what programs of ports may do --------------------------------------------------------


def report_through(host: HostEnd, folder: Path, name: str) -> Privileges:
    """Read from a port what the program behind it reports."""
    vconfs("mount", "--device", host.device, str(folder))
    port = folder / "by-name" / name
    block_until(port.exists)
    report = subprocess.run(["cat", str(port)], capture_output=True, text=True, timeout=10)
    vconfs("umount", str(folder))
    return Privileges.parse(report.stdout)


@root_only
def test_a_program_of_the_start_has_all_privileges_of_root(
    start_host: StartHost, folder: Path
) -> None:
    with start_host("--port", f"a=exec:{REPORT}") as host:
        assert report_through(host, folder, "a") == OURS


def test_a_program_added_later_gains_nothing(start_host: StartHost, folder: Path) -> None:
    with start_host("--port", "a=null") as host:
        host.ctl("add", f"b=exec:{REPORT}")
        assert report_through(host, folder, "b") == kept(no_new=True)


@root_only
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")
def test_a_program_that_became_another_user_is_ended(start_host: StartHost, folder: Path) -> None:
    become = "setpriv --reuid games --regid games --clear-groups"
    with start_host("--port", f"a=exec:echo $$; exec {become} sleep 1000") as host:
        vconfs("mount", "--device", host.device, str(folder))
        with open(folder / "vcon0", "rb") as port:
            program = os.pidfd_open(int(port.readline()))
        wait_for_end(program)
        vconfs("umount", str(folder))


# --- what goes on working -----------------------------------------------------------------


def write_to(port: Path, text: bytes) -> None:
    with open(port, "wb", buffering=0) as file:
        file.write(text)


@pytest.fixture
def others_folder(tmp_path: Path) -> Path:
    """A folder that only another user may enter, if we are root."""
    path = tmp_path / "games"
    path.mkdir(0o700)
    if os.geteuid() == 0:
        shutil.chown(path, "games", "games")
    return path


def test_files_of_other_users_are_opened_again_after_a_rotation(
    start_host: StartHost, folder: Path, others_folder: Path
) -> None:
    file = others_folder / "file"
    with start_host("--port", f"a=file:{file}", "--log", f"{others_folder}/log") as host:
        vconfs("mount", "--device", host.device, str(folder))
        write_to(folder / "vcon0", b"before\n")
        block_until(lambda: file.read_bytes() == b"before\n")
        file.rename(f"{file}.1")
        (others_folder / "log").rename(others_folder / "log.1")
        os.kill(host.pid, signal.SIGHUP)
        block_until(lambda: file.exists() and (others_folder / "log").exists())
        write_to(folder / "vcon0", b"after\n")
        block_until(lambda: file.read_bytes() == b"after\n")
        vconfs("umount", str(folder))


PORTS: Sequence[str] = ("file:{}/f", "unix:{}/s", "pipe:{}/p", "pty:{}/l", "seqpacket:{}/q")


@pytest.mark.parametrize("chardev", PORTS)
def test_ports_are_added_and_removed_in_folders_of_other_users(
    start_host: StartHost, others_folder: Path, chardev: str
) -> None:
    with start_host() as host:
        number = host.ctl("add", f"a={chardev.format(others_folder)}").strip()
        assert list(others_folder.iterdir())
        host.ctl("remove", number)


@root_only
def test_a_console_of_a_mount_is_given_to_another_user(folder: Path) -> None:
    options = "-o", "uid=games,allow_other,mode=0600", "--port", "=null,console"
    with mount_of(folder, *options):
        console = (folder / "hvc0").stat()
        assert console.st_uid == shutil._get_uid("games")  # type: ignore[attr-defined]

"""What people type on a bad day, and what the commands say and do then."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from .test_commands import VCONFS, folder, vconfs

__all__ = ["folder"]  # a fixture


def mounted(path: Path) -> tuple[str, str]:
    """The source of what is mounted there, and its options."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, _, options, *_ = line.split()
        if place == str(path):
            return source, options
    raise AssertionError(f"nothing is mounted on {path}")


def test_options_of_any_mount_are_applied(folder: Path) -> None:
    options = "ro,noexec,noatime,nodiratime,sync,dirsync,_netdev,nofail,x-systemd.automount,user"
    vconfs("mount", "-o", f"{options},fsname=ports", str(folder))
    source, applied = mounted(folder)
    assert source == "ports"
    wanted = {"ro", "noexec", "noatime", "nodiratime", "sync", "dirsync", "nosuid", "nodev"}
    assert wanted <= set(applied.split(","))
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(folder / "vcon1", os.O_WRONLY)


def test_every_list_of_options_has_config(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vcon.toml").write_text('port = "from-file=null"\n')
    vconfs("mount", "-o", f"wait,config={tmp_path}/vcon.toml", str(folder))
    assert os.listdir(folder / "by-name") == ["from-file"]
    assert "config=FILE" in vconfs("mount", "-o", "cofnig=x", str(folder), code=2)


@pytest.mark.parametrize("source", ["none", "embedded", "my,ports"])
def test_the_source_in_fstab_stays_what_it_is(folder: Path, source: str) -> None:
    """So `mount -a` finds it mounted, and does not try again."""
    words = ["none" if source == "my,ports" else source, str(folder), "-o", "rw"]
    if source == "my,ports":
        words = ["mount", "--source", source, str(folder)]
    vconfs(*words)
    assert mounted(folder)[0] == source


def test_a_mount_waits_for_a_host_end_that_comes_later(folder: Path, tmp_path: Path) -> None:
    url = f"stream:unix:{tmp_path}/sock"
    command = [*VCONFS, "mount", "--wait-for-host", "--device", url, str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as mount:
        assert mount.stderr is not None
        line = mount.stderr.readline()
        assert line.endswith("No such file or directory; trying again\n")
        assert mount.poll() is None
        host = [*VCONFS, "host", "--listen", url, "--port", "late=echo"]
        with subprocess.Popen(host, stderr=subprocess.DEVNULL) as running:
            try:
                assert mount.wait(20) == 0
                assert "late" in vconfs("ls", str(folder))
            finally:
                vconfs("umount", str(folder))
                running.terminate()


def test_waiting_for_a_host_end_has_a_limit(folder: Path, tmp_path: Path) -> None:
    words = ["-o", "wait-for-host=200ms", "--device", f"stream:unix:{tmp_path}/sock", str(folder)]
    done = subprocess.run(
        [*VCONFS, "mount", *words], capture_output=True, text=True, timeout=20, check=False
    )
    first, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert first.endswith("; trying again")
    assert last == f"vconfs: cannot connect to {tmp_path}/sock: No such file or directory"


@pytest.mark.parametrize("scheme", ["stream:unix", "vhost-user"])
def test_without_a_host_end_the_error_says_what_to_do(
    folder: Path, tmp_path: Path, scheme: str
) -> None:
    error = vconfs("mount", "--device", f"{scheme}:{tmp_path}/sock", str(folder), code=1)
    way_out = ": start the host end first, or mount with --wait-for-host"
    assert error == f"cannot connect to {tmp_path}/sock: No such file or directory{way_out}"


@pytest.fixture
def two(folder: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two mounts, one of which has a port with a long name."""
    other = tmp_path / "other"
    other.mkdir()
    vconfs("mount", "--port", "=null", "--port", f"{'long' * 30}=null", str(folder))
    vconfs("mount", str(other))
    yield folder, other
    for mount in (folder, other):
        subprocess.run([*VCONFS, "umount", "-f", str(mount)], check=False, timeout=20)


def test_ls_lists_all_mounts_or_several(two: tuple[Path, Path]) -> None:
    first, second = two
    assert vconfs("ls", "-q", str(first)).splitlines() == [f"{first}/vcon0", f"{first}/vcon1"]
    several = vconfs("ls", str(second), str(first)).splitlines()
    assert several[0].split()[:2] == ["MOUNT", "PORT"]
    paths = [str(mount) for mount in (second, second, first, first)]
    assert [line.split()[0] for line in several[1:]] == paths
    listed = vconfs("ls", "-q").splitlines()
    assert {f"{first}/vcon0", f"{second}/vcon1"} <= set(listed)
    found = [json.loads(line) for line in vconfs("ls", "--json").splitlines()]
    assert {str(first), str(second)} <= {port["mount"] for port in found}


def test_ls_writes_whole_lines_into_a_pipe(two: tuple[Path, Path]) -> None:
    lines = vconfs("ls", str(two[0])).splitlines()
    assert len(lines) == 3
    assert "long" * 30 in lines[2]


@pytest.mark.parametrize("columns", [30, 40, 80, 200])
def test_ls_fits_the_terminal(two: tuple[Path, Path], columns: int) -> None:
    with on_terminal("ls", str(two[0]), columns=columns) as terminal:
        lines = terminal.rest().splitlines()
    assert len(lines) == 3
    assert all(len(line) <= columns for line in lines)
    assert lines[2].startswith("vcon1")
    assert ("…" in lines[2]) == (columns < 200)


def test_names_that_end_differently_are_told_apart_on_a_narrow_terminal(folder: Path) -> None:
    ports = [f"--port=org.example.agent.of.guest.{number}=null" for number in range(12)]
    vconfs("mount", *ports, str(folder))
    with on_terminal("ls", str(folder), columns=40) as terminal:
        names = [line.split()[1] for line in terminal.rest().splitlines()[1:]]
    assert len(set(names)) == 12
    assert all(name.startswith("org.") and "…" in name for name in names)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self._process = process
        self._master = master
        self._seen = b""

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, text: str) -> None:
        """Read until the text has been shown."""
        deadline = time.monotonic() + 20
        while text.encode() not in self._seen:
            left = deadline - time.monotonic()
            assert select.select([self._master], [], [], max(0, left))[0], self._seen[-2000:]
            self._seen += os.read(self._master, 1 << 16)
        self._seen = self._seen.partition(text.encode())[2]

    def rest(self) -> str:
        """Return what is shown until the command ends, without escape sequences."""
        while select.select([self._master], [], [], 20)[0]:
            try:
                self._seen += os.read(self._master, 1 << 16)
            except OSError:  # the command has closed the terminal
                break
        assert self._process.wait(20) == 0
        return self._seen.decode(errors="replace")


@contextmanager
def on_terminal(
    *words: str,
    columns: int = 80,
    lines: int = 24,
    extra: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    size = {"COLUMNS": str(columns), "LINES": str(lines), "NO_COLOR": "1", "TERM": "dumb"}
    with subprocess.Popen(
        [*VCONFS, *words],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, **size, **extra},
        start_new_session=True,
    ) as process:
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            os.close(master)


def test_top_is_left_with_q_and_sorts_and_scrolls(folder: Path) -> None:
    ports = [word for number in range(60) for word in ("--port", f"p{number}=echo")]
    vconfs("mount", *ports, str(folder))
    try:
        with on_terminal("top", str(folder), lines=10, extra={"TERM": "xterm"}) as top:
            top.until("52 more")
            top.until("sorted by rate")
            top.press("s")
            top.until("sorted by queue")
            top.press("j")
            top.until("1 above  51 more")
            top.press("\033[6~")
            top.until("9 above  43 more")
            with open(folder / "vcon59", "wb", buffering=0) as port:
                port.write(b"x" * 5000)
                top.press("ss")
                top.until("vcon59")
            top.press("q")
            top.rest()
    finally:
        vconfs("umount", "-f", str(folder))


def test_the_first_picture_of_top_comes_soon_even_of_500_ports_at_40_columns(folder: Path) -> None:
    vconfs("mount", *(f"--port=org.example.{number}=echo" for number in range(500)), str(folder))
    took = []
    for _ in range(3):  # other tests may run at the same time
        begin = time.monotonic()
        with on_terminal("top", str(folder), columns=40, extra={"TERM": "xterm"}) as top:
            top.until("478 more")
            took.append(time.monotonic() - begin)
            top.press("q")
            top.rest()
    assert min(took) < 1


def test_umount_l_detaches_at_once_and_serves_open_files(folder: Path) -> None:
    vconfs("mount", "--port", "echo=echo", str(folder))
    daemon = os.pidfd_open(int(os.getxattr(folder, "user.pid")))
    try:
        with open(folder / "vcon0", "r+b", buffering=0) as port:
            vconfs("umount", "-l", str(folder))
            assert list(folder.iterdir()) == []
            port.write(b"still here")
            assert port.read(10) == b"still here"
        assert select.select([daemon], [], [], 20)[0], "the daemon goes on"
    finally:
        os.close(daemon)


def test_a_mount_has_a_control_socket_of_its_own(folder: Path, tmp_path: Path) -> None:
    control = str(tmp_path / "ctl")
    vconfs("mount", "--control", control, "--port", "first=null", str(folder))
    assert "first" in vconfs("ctl", control)
    assert vconfs("ctl", control, "add", "late=echo") == "1\n"
    with open(folder / "by-name/late", "r+b", buffering=0) as port:
        port.write(b"hello")
        assert port.read(5) == b"hello"
    vconfs("umount", str(folder))
    assert not os.path.exists(control)
    error = vconfs("mount", "--control", control, "--device", "kernel", str(folder), code=2)
    assert "the ports of kernel are its host's" in error


@pytest.mark.parametrize("command", ["cat", "connect"])
def test_a_person_is_told_what_a_command_waits_for(
    folder: Path, tmp_path: Path, command: str
) -> None:
    vconfs("mount", "--port", f"chat=unix:{tmp_path}/sock", str(folder))
    with on_terminal(command, str(folder / "by-name/chat")) as terminal:
        terminal.until("waiting for the host of chat…")
        with socket.socket(socket.AF_UNIX) as host:
            host.connect(f"{tmp_path}/sock")
            host.sendall(b"it is here")
            terminal.until("it is here")


def test_every_command_says_how_to_clear_a_dead_mount(folder: Path) -> None:
    vconfs("mount", str(folder))
    daemon = int(os.getxattr(folder, "user.pid"))
    with os.fdopen(os.pidfd_open(daemon)) as ended:
        os.kill(daemon, signal.SIGKILL)
        assert select.select([ended], [], [], 20)[0]
    way_out = f"the daemon of {folder} has ended: `vconfs umount {folder}`, then mount again"
    for words in (("ls",), ("top",), ("watch",)):
        assert vconfs(*words, str(folder), code=1) == way_out
    for words in (("cat",), ("connect",)):
        for port in ("vcon1", "by-name/org.vconfs.echo"):
            assert vconfs(*words, str(folder / port), code=1) == way_out
    assert f"vconfs umount {folder}" in vconfs("doctor")


def test_of_two_ports_with_one_name_the_log_says_which_has_the_link(
    folder: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    vconfs("mount", "--log", str(log), "--port", "twin=null", "--port", "twin=echo", str(folder))
    assert "vcon0 and vcon1 have the same name, which leads to vcon0" in log.read_text()
    assert os.readlink(folder / "by-name/twin") == "../vcon0"


def test_a_name_that_is_longer_than_a_file_name_has_a_link_that_is_cut(folder: Path) -> None:
    names = ["long" * 70 + end for end in "ab"]
    vconfs("mount", *(f"--port={name}=echo" for name in names), str(folder))
    links = sorted(os.listdir(folder / "by-name"))
    assert [len(link) for link in links] == [255, 255]
    assert {os.getxattr(folder / "by-name" / link, "name").decode() for link in links} == {*names}
    assert vconfs("cat", "--write", names[1]) == ""  # found by its whole name


#: What a terminal or a locale may lack.
SURROUNDINGS = {
    "C": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
    "dumb": {"LC_ALL": "C.UTF-8", "TERM": "dumb"},
    "no TERM": {"LC_ALL": "C.UTF-8", "TERM": ""},
    "no colour": {"LC_ALL": "C.UTF-8", "TERM": "xterm", "NO_COLOR": "1"},
}
#: Every command that prints; {mount} and {control} are those of `strange`.
PRINTING = {
    "help": 0,
    "version": 0,
    "mount --help": 0,
    "manual {scratch}/manual": 0,
    "ls": 0,
    "ls {mount}": 0,
    "ls -q {mount}": 0,
    "ls --json {mount}": 0,
    "top --count 1 {mount}": 0,
    "watch --until connect={name} --timeout 5 {mount}": 0,
    "watch --timeout 0.1 {mount}": 1,
    "ctl {control} list": 0,
    "ctl {control} list --json": 0,
    "ctl {control} throttle {name} on": 0,
    "ctl {control} throttle no{name} on": 1,
    "ctl {control} add {name}=unknöwn": 1,
    "doctor": None,
    "doctor --json": None,
    "bind": None,
    "cat no{name}": 1,
    "connect no{name}": 1,
    "ls {mount}/{name}": 1,
    "umount {mount}/{name}": 1,
    "möunt": 2,
    "mount --port x=fïle:/x {mount}": 2,
    "host --listen {name}": 2,
}
NAME = "ünï\N{SNOWMAN}\N{COLLISION SYMBOL}"


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A mount whose port and path have names that few locales can show."""
    scratch = tmp_path_factory.mktemp("strange")
    mount, control = scratch / f"{NAME}-mount", str(scratch / "ctl")
    mount.mkdir()
    long = NAME * 12
    ports = [f"--port={NAME}=echo", f"--port={long}=null"]
    vconfs("mount", "--control", control, *ports, str(mount))
    yield {"mount": str(mount), "control": control, "name": NAME, "scratch": str(scratch)}
    vconfs("umount", "-f", str(mount))


#: Runs each command that is a line of the input, in a process that has loaded all commands: to
#: start an interpreter for each takes most of the time. Prints for each its exit code, and saves
#: what it said in a file.
EACH = """
import importlib, os, pkgutil, sys
import vconfs.cli
from vconfs.__main__ import main
for module in pkgutil.iter_modules(vconfs.cli.__path__):
    importlib.import_module("vconfs.cli." + module.name)
for number, line in enumerate(sys.stdin.buffer.read().splitlines()):
    if not (child := os.fork()):
        output = os.open(f"{sys.argv[1]}/{number}", os.O_WRONLY | os.O_CREAT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv[1:] = [os.fsdecode(word) for word in line.split()]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module", params=SURROUNDINGS)
def printed(
    request: pytest.FixtureRequest,
    strange: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, dict[str, tuple[int, str]]]:
    """The surroundings, and for each command its exit code in them, and what it said."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    folder = tmp_path_factory.mktemp("printed")
    done = subprocess.run(
        [sys.executable, "-c", EACH, str(folder)],
        input="\n".join(PRINTING).format(**strange).encode(),
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
        env={**kept, **SURROUNDINGS[request.param]},
    )
    codes = map(int, done.stdout.split())
    said = [
        (folder / str(number)).read_bytes().decode("latin-1") for number in range(len(PRINTING))
    ]
    return request.param, dict(zip(PRINTING, zip(codes, said, strict=True), strict=True))


@pytest.mark.parametrize("command", PRINTING)
def test_every_command_prints_in_any_surroundings(
    printed: tuple[str, dict[str, tuple[int, str]]], command: str
) -> None:
    surroundings, outcomes = printed
    code, said = outcomes[command]
    assert "Traceback" not in said
    assert "UnicodeEncodeError" not in said
    assert "\033" not in said
    if PRINTING[command] is not None:
        assert code == PRINTING[command], said
    if surroundings in ("C", "POSIX") and "ls -q" not in command:
        assert said.isascii()


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("command", ["ls {mount}", "top --count 1 {mount}", "ctl {control} list"])
def test_no_table_is_folded_letter_by_letter_at_30_columns(
    strange: dict[str, str], command: str, surroundings: str
) -> None:
    words = command.format(**strange).split()
    with on_terminal(*words, columns=30, extra=SURROUNDINGS[surroundings]) as terminal:
        shown = terminal.rest()
    lines = re.sub(r"\033\[[0-9;]*m", "", shown).splitlines()
    assert len(lines) == 3
    assert all(len(line) <= 30 for line in lines)
    assert ("\033" in shown) <= (surroundings == "no colour")  # there can be bold letters


def test_top_prints_tables_on_a_terminal_that_cannot_be_drawn_on(strange: dict[str, str]) -> None:
    with on_terminal("top", "--interval", "0.1", strange["mount"], extra={"TERM": "dumb"}) as top:
        top.until("PORT")
        top.until("PORT")


def test_doctor_has_no_colours_where_there_must_be_none() -> None:
    for colourless in ({"TERM": "dumb", "NO_COLOR": ""}, {"TERM": "xterm", "NO_COLOR": "1"}):
        with on_terminal("doctor", extra=colourless) as doctor:
            assert "\033" not in doctor.rest()

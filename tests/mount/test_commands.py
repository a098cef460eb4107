"""The commands, as a person calls them: what they print, how they end, what they leave."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

VCONFS = (sys.executable, "-m", "vconfs")


def vconfs(*words: str, code: int = 0, **environment: str) -> str:
    """Run a command; give what it printed, on stdout when it succeeds and on stderr when not."""
    done = subprocess.run(
        [*VCONFS, *words],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert done.stdout == ""
        assert done.stderr.startswith("vconfs: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr.removeprefix("vconfs: ").strip()
    return done.stdout


def mounts(path: Path) -> list[str]:
    """The types of what is mounted there."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[2] for line in lines if line.split()[1] == str(path)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder to mount on; whatever is mounted there in the end goes away."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    while mounts(path):
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=10)


def daemon_of(path: Path) -> int:
    return int(os.getxattr(path, "user.pid"))


def test_the_default_mount_is_a_console_and_an_echo(folder: Path) -> None:
    assert vconfs("mount", str(folder)) == ""
    assert mounts(folder) == ["fuse.vconfs"]
    ports = [json.loads(line) for line in vconfs("ls", "--json", str(folder)).splitlines()]
    assert [(port["port"], port["console"]) for port in ports] == [
        ("vcon0", True),
        ("vcon1", False),
    ]
    assert ports[1]["name"] == "org.vconfs.echo"
    with open(folder / "vcon1", "r+b", buffering=0) as port:
        port.write(b"hello")
        assert port.read(5) == b"hello"
    table = vconfs("ls", str(folder))
    assert "org.vconfs.echo" in table
    assert "connected" in table
    daemon = os.pidfd_open(daemon_of(folder))
    assert vconfs("umount", str(folder)) == ""
    assert mounts(folder) == []
    wait_for_end(daemon)


def wait_for_end(pidfd: int) -> None:
    import select

    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)


def test_umount_ends_a_blocked_reader(folder: Path) -> None:
    vconfs("mount", "-o", "wait", "--port", "quiet=null", str(folder))
    with subprocess.Popen(["cat", str(folder / "vcon0")], stdout=subprocess.PIPE) as cat:
        while not os.getxattr(folder / "vcon0", "user.openers"):
            assert cat.poll() is None
        vconfs("umount", str(folder))
        assert cat.wait(5) == 0
    assert mounts(folder) == []


def test_a_mount_may_be_named_by_a_link(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    vconfs("mount", str(link))
    assert "vcon1" in vconfs("ls", str(link))
    vconfs("umount", str(link))
    assert mounts(folder) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_mount_in_the_foreground_ends_in_order_by_a_signal(
    folder: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        ["env", "--default-signal", *VCONFS, "mount", "-f", str(folder)], stderr=subprocess.PIPE
    ) as daemon:
        wait_for_file(folder / "vcon1", daemon)
        daemon.send_signal(number)
        assert daemon.wait(10) == 0
        assert daemon.stderr is not None
        assert daemon.stderr.read() == b""
    assert mounts(folder) == []


def wait_for_file(path: Path, daemon: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        assert daemon.poll() is None


def test_what_a_killed_daemon_has_left_is_cleared_by_the_next_mount(folder: Path) -> None:
    vconfs("mount", str(folder))
    daemon = os.pidfd_open(daemon_of(folder))
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    wait_for_end(daemon)
    with pytest.raises(OSError):
        os.listdir(folder)
    vconfs("mount", str(folder))
    assert mounts(folder) == ["fuse.vconfs"]
    assert "vcon1" in os.listdir(folder)
    vconfs("umount", str(folder))


def test_umount_clears_a_dead_mount(folder: Path) -> None:
    vconfs("mount", str(folder))
    daemon = os.pidfd_open(daemon_of(folder))
    signal.pidfd_send_signal(daemon, signal.SIGKILL)
    wait_for_end(daemon)
    vconfs("umount", str(folder))
    assert mounts(folder) == []


@pytest.mark.busy("the daemon is stopped in any of its steps")
def test_umount_does_not_wait_for_a_daemon_that_is_stopped(folder: Path) -> None:
    vconfs("mount", "--port", "a=null", str(folder))
    daemon = os.pidfd_open(daemon_of(folder))
    with subprocess.Popen(["cat", str(folder / "vcon0")], stderr=subprocess.PIPE) as reader:
        while os.getxattr(folder / "vcon0", "user.openers") == b"":
            pass
        signal.pidfd_send_signal(daemon, signal.SIGSTOP)
        try:
            vconfs("umount", str(folder))
            assert mounts(folder) == []
            _, error = reader.communicate(timeout=10)
            assert b"Software caused connection abort" in error
        finally:
            signal.pidfd_send_signal(daemon, signal.SIGCONT)
            reader.kill()
    wait_for_end(daemon)


@pytest.mark.busy("the daemon is stopped in any of its steps")
def test_commands_say_that_a_daemon_which_is_stopped_does_not_answer(folder: Path) -> None:
    vconfs("mount", "--port", "a=null", str(folder))
    daemon = os.pidfd_open(daemon_of(folder))
    port, named = str(folder / "vcon0"), str(folder / "a")
    signal.pidfd_send_signal(daemon, signal.SIGSTOP)
    try:
        asked = [
            (words[-1], subprocess.Popen([*VCONFS, *words], stderr=subprocess.PIPE, text=True))
            for words in (
                ("ls", str(folder)),
                ("ls", "--json", str(folder)),
                ("top", "--count", "1", str(folder)),
                ("watch", str(folder)),
                ("watch", "--timeout", "60", str(folder)),
                ("cat", port),
                ("cat", "--write", named),
                ("connect", port),
            )
        ]
        for what, command in asked:
            with command:
                _, error = command.communicate(timeout=30)
            answer = (
                f"vconfs: {what} does not answer: the daemon of the mount is stopped, or busy\n"
            )
            assert (command.returncode, error) == (1, answer)
    finally:
        for _, command in asked:
            command.kill()
        signal.pidfd_send_signal(daemon, signal.SIGCONT)
    vconfs("umount", str(folder))
    wait_for_end(daemon)


def test_a_umount_by_another_program_ends_the_daemon(folder: Path) -> None:
    vconfs("mount", str(folder))
    daemon = os.pidfd_open(daemon_of(folder))
    subprocess.run(["umount", str(folder)], check=True)
    wait_for_end(daemon)


def test_mount_helpers_call_it_with_a_device_and_a_folder(folder: Path) -> None:
    assert vconfs("none", str(folder), "-o", "rw,nosuid,noauto,x-systemd.automount,wait") == ""
    assert mounts(folder) == ["fuse.vconfs"]
    vconfs("umount", str(folder))


def test_options_from_a_file(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "vconfs.toml"
    config.write_text('port = ["a=null", "b=echo"]\noptions = ["mode=0640", "exclusive"]\n')
    vconfs("mount", "--config", str(config), str(folder))
    assert sorted(path.name for path in folder.glob("vcon*")) == ["vcon0", "vcon1"]
    assert (folder / "vcon0").stat().st_mode & 0o777 == 0o640
    vconfs("umount", str(folder))


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        ("mount {folder}", "prot = []", ":1: prot: unknown key: the keys are log-format, "),
        ("mount {folder}", '\ndevice = "x"', ":2: device: unknown device 'x'"),
        ("mount {folder}", 'port = ["a=echo", "b=x"]', ":1: port: unknown chardev 'x'"),
        ("mount {folder}", 'options = "mode=1"', ":1: options: mode is three octal digits"),
        ("mount {folder}", 'rules = "/no"', ":1: rules: /no: No such file or directory"),
        ("host", 'listen = "x"', ":1: listen: cannot listen on 'x'"),
        ("host", 'log-format = "xml"', ":1: log-format: 'xml' is not one of 'text', 'json'"),
    ],
)
def test_what_is_wrong_with_a_file_of_options_is_told_with_line_and_key(
    folder: Path, tmp_path: Path, words: str, text: str, message: str
) -> None:
    config = tmp_path / "vconfs.toml"
    config.write_text(text)
    command, *rest = words.format(folder=folder).split()
    assert f"{config}{message}" in vconfs(command, "--config", str(config), *rest, code=2)


def test_a_log_in_json_is_an_object_per_line(folder: Path, tmp_path: Path) -> None:
    url = f"stream:unix:{tmp_path}/device"
    host_words = "host", "--log-format", "json", "--listen", url, "--port", "a=echo"
    guest_words = "mount", "-f", "--log-format", "json", "--device", url, str(folder)
    with running(*host_words) as host:
        line = logged(host)
        assert (line["level"], line["message"]) == ("info", f"listening on {url}")
        assert isinstance(line["time"], float)
        with running(*guest_words) as guest:
            wait_for_file(folder / "vcon0", guest)
            host.terminate()
            assert host.wait(10) == 0
            assert logged(guest)["level"] == "warning"
            guest.terminate()
            assert guest.wait(10) == 0
    done = subprocess.run(
        [*VCONFS, *guest_words[:-1], "/missing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert json.loads(done.stderr)["level"] == "error"


@pytest.mark.parametrize("command", ["mount", "host"])
def test_a_service_manager_hears_that_we_are_ready_and_live(
    folder: Path, tmp_path: Path, command: str
) -> None:
    words = {
        "mount": ["-f", "--port", "a=null", str(folder)],
        "host": ["--listen", f"stream:unix:{tmp_path}/device"],
    }[command]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(str(tmp_path / "notify"))
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        with running(command, *words, **told) as service:
            heard = [manager.recv(1000).decode().strip()]
            while heard[-1] != "READY=1":
                heard.append(manager.recv(1000).decode().strip())
            assert (folder / "vcon0").exists() == (command == "mount")
            status = f"mounted on {folder}" if command == "mount" else f"listening on {words[1]}"
            assert heard[-2].startswith("STATUS=")
            assert heard[-2].endswith(status)
            for _ in range(3):
                assert manager.recv(1000) == b"WATCHDOG=1\n"
            service.terminate()
            assert service.wait(10) == 0


@contextmanager
def running(*words: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the foreground that does not outlive the block."""
    command = "env", "--default-signal", *VCONFS, *words
    told = {**os.environ, **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=told) as process:
        try:
            yield process
        finally:
            process.kill()


def logged(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next line that a command writes to stderr."""
    assert process.stderr is not None
    line = json.loads(process.stderr.readline())
    assert list(line) == ["time", "level", "message"]
    return dict(line)


@pytest.mark.parametrize("command", ["--help", "doctor"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_an_error_of_one_line(
    command: str, unbuffered: str
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*VCONFS, command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr == "vconfs: standard output: No space left on device\n"


def test_ctrl_c_while_the_commands_are_loaded_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    done = subprocess.run(
        [sys.executable, "-c", "from vconfs.__main__ import main; main()"],
        capture_output=True,
        timeout=20,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_ctrl_c_ends_a_mount_that_waits_for_its_device(folder: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(20)
        listener.bind(f"{tmp_path}/silent")
        listener.listen()
        with running("mount", "--device", f"stream:unix:{tmp_path}/silent", str(folder)) as mount:
            device, _ = listener.accept()
            with device:
                device.settimeout(5)  # less than what it would wait for a hello
                mount.send_signal(signal.SIGINT)
                while device.recv(4096):
                    pass
            assert mount.wait(20) == -signal.SIGINT
    assert mounts(folder) == []


# --- mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "x"], "'x' is not NAME=CHARDEV"),
        (["--port", "x=pigeon"], "unknown chardev 'pigeon'"),
        (["--port", "x=stdio"], "stdio is for a mount with -f: in the background it would be"),
        (["--port", "x=echo,id=many"], "id is a number from 0 to 32767, not 'many'"),
        (["-o", "nonsense"], "unknown option 'nonsense': the options are allow_other, cache"),
        (["-o", "mode=rwx"], "mode is three octal digits, like 0660, not 'rwx'"),
        (["-o", "mode=7777"], "mode is three octal digits"),
        (["-o", "uid=nobody-at-all"], "uid is a number or a name that is known here"),
        (
            ["-o", "throttle=maybe"],
            "throttle is enospc, block, or a time like 10s, 500ms or 2m, not 'maybe'",
        ),
        (["-o", "limit=0"], "limit is a size in bytes, or like 64K"),
        (["-o", "limit=lots"], "limit is a size in bytes, or like 64K"),
        (["-o", "wait=yes"], "wait takes no value, not 'yes'"),
        (["--device", "floppy"], "unknown device 'floppy'"),
        (["--dialect", "klingon"], "'klingon' is not one of"),
        (["--config", "/nonexistent"], "/nonexistent"),
    ],
)
def test_usage_errors_are_one_clear_line_and_exit_code_2(
    folder: Path, words: list[str], message: str
) -> None:
    assert message in vconfs("mount", *words, str(folder), code=2)
    assert mounts(folder) == []


def test_unknown_commands_and_missing_arguments() -> None:
    assert "there is no command 'frobnicate'" in vconfs("frobnicate", code=2)
    assert "Missing argument 'MOUNTPOINT'" in vconfs("mount", code=2)


def test_without_a_command_the_help_is_shown() -> None:
    done = subprocess.run(VCONFS, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == vconfs("--help")


def test_places_where_nothing_can_be_mounted(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").touch()
    for place, message in (
        (tmp_path / "missing", f"{tmp_path}/missing does not exist: make the folder first"),
        (file, f"{file} is not a folder"),
        (full, f"{full} is not empty: mount on an empty folder"),
    ):
        assert message in vconfs("mount", str(place), code=1)
        assert mounts(place) == []
    vconfs("mount", str(folder))
    error = vconfs("mount", str(folder), code=1)
    assert error == f"{folder} has a vconfs mount already: `vconfs umount {folder}` first"
    vconfs("umount", str(folder))


def test_chardevs_that_cannot_start(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        error = vconfs("mount", "--port", f"x=unix:{path}", str(folder), code=1)
        assert error == f"{path} is in use by another program: choose another path"
    error = vconfs("mount", "--port", f"x=unix:{tmp_path}/no/sock", str(folder), code=1)
    assert f"the folder {tmp_path}/no does not exist: make it first" in error
    error = vconfs("mount", "--port", "a=null,id=3", "--port", "b=null,id=3", str(folder), code=1)
    assert error == "port id 3 is taken by 'a'"
    assert mounts(folder) == []


def test_without_dev_fuse_and_without_permission(folder: Path) -> None:
    hide = "mount --bind /dev/null /dev/fuse 2>/dev/null || exit 9; "
    script = f'{hide} exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "-", *VCONFS, "mount", str(folder)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1
    assert "cannot mount on" in done.stderr or "/dev/fuse" in done.stderr
    assert mounts(folder) == []


def test_doctor_looks_at_this_machine() -> None:
    assert "/dev/fuse can be used" in vconfs("doctor")
    findings = [json.loads(line) for line in vconfs("doctor", "--json").splitlines()]
    assert {tuple(finding) for finding in findings} == {("check", "state", "message", "advice")}
    assert {"kernel", "fuse-device", "iommu"} <= {finding["check"] for finding in findings}


def test_doctor_fails_where_no_mount_can_work() -> None:
    script = 'mount --bind /dev/null /dev/fuse; exec "$@"'
    command = "unshare", "--mount", "sh", "-c", script, "-", *VCONFS, "doctor"
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert done.stderr == "vconfs: no mount can work here: /dev/fuse is not the FUSE device\n"
    assert "mknod -m 666 /dev/fuse c 10 229" in done.stdout


def test_umount_and_ls_of_what_is_no_mount(folder: Path) -> None:
    assert vconfs("umount", str(folder), code=1) == f"{folder} is not a vconfs mount"
    assert vconfs("ls", str(folder), code=1) == f"{folder} is not a vconfs mount"
    missing = folder / "missing"
    assert vconfs("ls", str(missing), code=1) == f"{missing}: No such file or directory"


def test_a_terminal_gets_the_table_as_wide_as_it_is(folder: Path) -> None:
    vconfs("mount", str(folder))
    ours, theirs = pty.openpty()
    subprocess.run([*VCONFS, "ls", str(folder)], stdout=theirs, check=True, timeout=20)
    os.close(theirs)
    assert b"org.vconfs.echo" in os.read(ours, 10000)
    os.close(ours)
    vconfs("umount", str(folder))

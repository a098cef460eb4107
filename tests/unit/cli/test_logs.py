"""How what is logged looks, and where it goes."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vconfs.cli._logs import log_in_background, open_log, set_log_format
from vconfs.errors import VconfsError
from vconfs.system.log_file import reopen_log_files
from vconfs.system.log_once import UNLIMITED

log = logging.getLogger("vconfs.test")


@pytest.fixture(autouse=True)
def root_handlers() -> Iterator[None]:
    """Put pytest's own handlers back, and the hook for exceptions."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    hook = sys.excepthook
    yield
    sys.excepthook = hook
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "log"))
        end.settimeout(5)
        yield end


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_log_format("text")
    log.warning("the %s\nis lost", "device")
    log.debug("nobody wants to know")
    assert capsys.readouterr().err == "vconfs: the device\\x0ais lost\n"


def test_only_a_daemon_limits_alike_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The lines of another command are answers to what it was asked."""
    set_log_format()
    for number in range(100):
        log.warning("mount %d does not answer", number)
    assert capsys.readouterr().err.count("\n") == 100
    set_log_format(limits_lines=True)
    for number in range(100):
        log.warning("mount %d does not answer", number)
    assert 0 < capsys.readouterr().err.count("\n") < 100


def test_lines_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    set_log_format("json")
    log.info("é\n%d", 1)
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"]) == ("info", "é\n1")


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_systems_log(syslog: socket.socket, form: str) -> None:
    set_log_format(form)
    log_in_background(syslog.getsockname())
    log.warning("%s lost", "\udcff")  # a byte that was no text
    priority, _, text = syslog.recv(1000).decode().partition(">")
    assert priority == "<28"  # daemon, warning
    head, _, message = text.partition(": ")
    assert head == f"vconfs[{os.getpid()}]"
    if form == "json":
        assert json.loads(message)["message"] == "\udcff lost"
    else:
        assert message == r"\xff lost"


def test_a_full_log_of_the_system_loses_lines_and_stops_nothing(
    syslog: socket.socket,
) -> None:
    set_log_format()
    log_in_background(syslog.getsockname())
    for _ in range(2000):
        log.warning("x" * 1000, extra=UNLIMITED)
    taken = 0
    syslog.setblocking(False)
    with suppress(BlockingIOError):
        while syslog.recv(2000):
            taken += 1
    assert 0 < taken < 2000


def test_a_system_without_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_log_format()
    log_in_background(str(tmp_path / "none"))
    log.warning("lost")
    assert capsys.readouterr().err == ""


# --- the file of --log --------------------------------------------------------------------

_HEAD = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d vconfs\[%d\]: "


@pytest.fixture
def stderr_kept() -> Iterator[None]:
    """Put descriptor 2 back."""
    kept = os.dup(2)
    yield
    os.dup2(kept, 2)
    os.close(kept)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_file_beside_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    set_log_format(form)
    open_log(f"{tmp_path}/log")
    log.warning("the %s\nis lost: %s", "device", "\udcff")
    assert "is lost" in capsys.readouterr().err
    (line,) = (tmp_path / "log").read_text().splitlines()
    if form == "json":
        assert json.loads(line)["message"] == "the device\nis lost: \udcff"
    else:
        head = _HEAD % os.getpid()
        assert re.fullmatch(head + r"warning: the device\\x0ais lost: \\xff", line)


@pytest.mark.usefixtures("stderr_kept")
def test_in_the_background_the_file_is_all(tmp_path: Path) -> None:
    set_log_format()
    open_log(f"{tmp_path}/log")
    log_in_background()
    log.warning("lost")
    os.write(2, b"a program says\n")
    (tmp_path / "log").rename(tmp_path / "old")
    reopen_log_files()
    log.warning("found")
    os.write(2, b"another says\n")
    assert re.sub(_HEAD % os.getpid(), "", (tmp_path / "old").read_text()) == (
        "warning: lost\na program says\n"
    )
    assert re.sub(_HEAD % os.getpid(), "", (tmp_path / "log").read_text()) == (
        "warning: found\nanother says\n"
    )


@pytest.mark.usefixtures("stderr_kept")
@pytest.mark.expect_log("ended by an internal error")
def test_what_ends_a_daemon_in_the_background_is_logged(tmp_path: Path) -> None:
    set_log_format()
    open_log(f"{tmp_path}/log")
    log_in_background()
    try:
        raise RuntimeError("a mistake of ours")
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    line = (tmp_path / "log").read_text()
    assert "critical: ended by an internal error: Traceback" in line
    assert line.endswith("RuntimeError: a mistake of ours\n")
    assert line.count("\n") == 1


def test_lines_that_a_full_disk_does_not_take_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_log_format()
    open_log(f"{tmp_path}/log")
    log.warning("before")
    really_write, room = os.write, 10

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        taken = really_write(descriptor, data[:room]) if room else 0
        room -= taken
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken

    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        for number in range(3):
            log.warning("%d", number)
    log.warning("after")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "warning: before",
        "",  # what there was room for of a line
        "warning: 3 lines are missing here: they could not be written",
        "warning: after",
    ]
    assert capsys.readouterr().err.count("\n") == 5  # stderr has all of it


@pytest.mark.parametrize("is_rotated", [False, True])
def test_a_line_after_a_part_of_a_line_begins_anew(tmp_path: Path, is_rotated: bool) -> None:
    set_log_format()
    path = tmp_path / "log"
    open_log(f"{path}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        log.warning("torn")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == 10
    if is_rotated:
        path.rename(tmp_path / "old")
    reopen_log_files()
    log.warning("after")
    lines = path.read_text().splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        *([] if is_rotated else [""]),
        "warning: 1 lines are missing here: they could not be written",
        "warning: after",
    ]


def test_a_fifo_without_a_reader_is_not_a_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(VconfsError, match="fifo: No such device or address"):
        open_log(f"{tmp_path}/fifo")

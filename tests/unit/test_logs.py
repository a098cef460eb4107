"""How what is logged looks, and where it goes."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vconfs.cli.logs import log_to_system, set_log_format

log = logging.getLogger("vconfs.test")


@pytest.fixture(autouse=True)
def root_handlers() -> Iterator[None]:
    """Put pytest's own handlers back."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    yield
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
    assert capsys.readouterr().err == "vconfs: the device is lost\n"


def test_lines_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    set_log_format("json")
    log.info("é\n%d", 1)
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"]) == ("info", "é\n1")


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_system_s_log(syslog: socket.socket, form: str) -> None:
    set_log_format(form)
    log_to_system(syslog.getsockname())
    log.warning("%s lost", "\udcff")  # a byte that was no text
    priority, _, text = syslog.recv(1000).decode().partition(">")
    assert priority == "<28"  # daemon, warning
    head, _, message = text.partition(": ")
    assert head == f"vconfs[{os.getpid()}]"
    if form == "json":
        assert json.loads(message)["message"] == "\udcff lost"
    else:
        assert message == r"\udcff lost"


def test_a_system_s_log_that_is_full_loses_lines_and_holds_nobody_up(
    syslog: socket.socket,
) -> None:
    set_log_format()
    log_to_system(syslog.getsockname())
    for _ in range(2000):
        log.warning("x" * 1000)


def test_a_system_without_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_log_format()
    log_to_system(str(tmp_path / "none"))
    log.warning("lost")
    assert capsys.readouterr().err == ""

"""The example of a host end inside of a program, and a mount of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .examples import EXAMPLES
from .test_commands import folder, vconfs, wait_for_file

__all__ = ["folder"]

HOST_INFO = ("env", "--default-signal", sys.executable, str(EXAMPLES / "host-info.py"))

ASK = r"""
    exec 3<>"$1"
    printf 'load\nti' >&3; read -r load <&3
    printf 'me\nweather\n' >&3; read -r time <&3; read -r else <&3
    echo "$load; $time; $else"
"""


def test_it_answers_each_program_of_the_guest(folder: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    with subprocess.Popen([*HOST_INFO, f"stream:unix:{device}"], stderr=subprocess.PIPE) as host:
        try:
            wait_for_file(device, host)
            vconfs("mount", "--device", f"stream:unix:{device}", str(folder))
            port = folder / "by-name/org.example.host-info"
            wait_for_file(port, host)
            for _ in range(2):
                said = subprocess.check_output(["bash", "-c", ASK, "-", str(port)], timeout=10)
                assert re.fullmatch(rb"([\d.]+ ?){3}; [\dT:-]+Z; ask for time or load\n", said)
            vconfs("umount", str(folder))
            host.terminate()
            assert host.wait(10) == 0
        finally:
            host.kill()
    assert not device.exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "usage: host-info.py LISTEN-URL"),
        (["no:where"], "cannot listen on 'no:where': use one of "),
        (["stream:unix:/no/where"], "/no/where: the folder /no does not exist: make it first"),
    ],
)
def test_it_reports_why_it_cannot_be_a_host_end(words: list[str], error: str) -> None:
    done = subprocess.run(
        [*HOST_INFO, *words], capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1

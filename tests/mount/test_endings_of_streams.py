"""Data on its way through a slow stream when an end leaves: it arrives, or is counted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM
from subprocess import Popen

import pytest

from tests.support.waiting import block_until

from .test_commands import folder
from .test_endings import dropped, mount_of, refuses_writers, running, said_at_end

__all__ = ["folder"]

SIZE = 200_000
#: Connects its standard streams to the unix socket, like socat. It passes what it reads on 4 KiB at
#: a time and late: the last piece long after the end of its input. It stops when it has read `most`
#: bytes.
BRIDGE = """
import os, socket, sys, threading, time
path, most = sys.argv[1], int(sys.argv[2])
sock = socket.socket(socket.AF_UNIX)
sock.connect(path)

def back():
    while data := sock.recv(1 << 16):
        os.write(1, data)
    os.close(1)

threading.Thread(target=back, daemon=True).start()
total = 0
kept = b""
while data := os.read(0, min(4096, most - total)):
    total += len(data)
    sock.sendall(kept)
    kept = data
    time.sleep(0.05 if total > 1000 else 0)
    if total == most:
        sock.sendall(kept)
        time.sleep(1000)
    if total < 1000:  # a hello and control messages are not held up
        sock.sendall(kept)
        kept = b""
time.sleep(0.7)
sock.sendall(kept)
sock.shutdown(socket.SHUT_WR)
while threading.active_count() > 1:
    time.sleep(0.01)
"""


@contextmanager
def slow_mount(folder: Path, most: int, *words: str) -> Iterator[tuple[Popen[str], Path]]:
    """A mount whose device is at the other side of a slow program; the host end's file."""
    place = folder.parent
    (place / "bridge.py").write_text(BRIDGE)
    url, file = f"stream:unix:{place}/device", place / "file"
    with running("host", "--listen", url, "--port", f"name=file:{file}"):
        block_until((place / "device").exists)
        command = f"exec {sys.executable} {place}/bridge.py {place}/device {most}"
        with mount_of(folder, "--device", f"stream:exec:{command}", *words) as mount:
            yield mount, file


def write(folder: Path) -> None:
    with open(folder / "vcon0", "wb", buffering=0) as port:
        for start in range(0, SIZE, 10_000):
            assert port.write(coded(start, 10_000)) == 10_000


def coded(start: int, size: int) -> bytes:
    return bytes((start + i) * 7 % 251 for i in range(size))


def test_a_slow_program_gets_the_time_that_it_needs(folder: Path) -> None:
    with slow_mount(folder, 1 << 30) as (mount, file):
        write(folder)
        mount.terminate()
        assert dropped(said_at_end(mount)) == 0
        block_until(lambda: file.stat().st_size == SIZE)
        assert file.read_bytes() == coded(0, SIZE)


@pytest.mark.parametrize("signals", [[SIGTERM], [SIGTERM, SIGINT]], ids=["one", "two"])
def test_what_a_program_has_not_read_is_counted(folder: Path, signals: list[int]) -> None:
    drain = "300ms" if len(signals) == 1 else "1000"
    with slow_mount(folder, 50_000, "-o", f"drain={drain}") as (mount, file):
        write(folder)
        block_until(lambda: file.stat().st_size >= 40_000)
        for number in signals:
            mount.send_signal(number)
            block_until(lambda: refuses_writers(folder))
        lost = dropped(said_at_end(mount))
        assert lost > 0
        assert file.stat().st_size + lost == SIZE

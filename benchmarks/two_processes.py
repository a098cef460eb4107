"""Guest end and host end as two processes, compared with socat, which joins two sockets.

The path is a mounted port, the guest end, vhost-user or a unix stream, the host end and a chardev
(zero to read, null to write, echo to ping-pong); socat's is one socket, socat, and another
socket. The ping-pong is compared with the least that two processes and a file need: the sum of that
of two trio programs on a bare socket, and that of a file of our session with nothing behind it.
Ours should have at least half of socat's throughput, and over vhost-user at most 3 times that
ping-pong.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fuse_session import BLOCKS, REPETITIONS, ROUNDS, SECONDS
from benchmarks.measure import Samples, ask, build, one_cpu, report, serving
from benchmarks.ports import VCONFS, move, ping_pong

DEVICES = {"vhost-user": "vhost-user:{}", "stream": "stream:unix:{}"}
SOCAT, LEAST = "socat", "trio + FUSE"


def main() -> None:
    moved: Samples = defaultdict(list)
    pongs: Samples = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="vconfs-bench-") as folder, one_cpu():
        place = Path(folder)
        client = build("client.c", place)
        (place / "mnt").mkdir()
        for _ in range(REPETITIONS):
            for name, url in DEVICES.items():
                with two_ends(place, url.format(place / "device")) as by_name:
                    move(client, name, by_name / "zero", by_name / "null", moved)
                    ping_pong(client, name, by_name / "echo", pongs)
            for name, size in BLOCKS.items():
                rate = socat_rate(client, place, size)
                for direction in ("read", "write"):
                    moved[f"{direction} {name}", SOCAT].append(rate / 1e6)
            middle, late = least_pong(client, place)
            pongs["ping-pong", LEAST].append(middle)
            pongs["ping-pong p99", LEAST].append(late)
    report(moved, [*DEVICES, SOCAT], *((name, SOCAT) for name in DEVICES))
    report(pongs, [*DEVICES, LEAST], *((name, LEAST) for name in DEVICES))


@contextmanager
def two_ends(place: Path, url: str) -> Iterator[Path]:
    """Run both ends in processes of their own, with a mount."""
    specs = [f"--port={kind}={kind}" for kind in ("zero", "null", "echo")]
    mountpoint = place / "mnt"
    with running([*VCONFS, "host", "--listen", url, *specs]) as host:
        assert host.stderr is not None
        host.stderr.readline()  # that it listens
        subprocess.run([*VCONFS, "mount", "--device", url, str(mountpoint)], check=True)
        try:
            yield mountpoint / "by-name"
        finally:
            subprocess.run([*VCONFS, "umount", str(mountpoint)], check=True)


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program while the block runs."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as program:  # type: ignore[call-overload]
        try:
            yield program
        finally:
            program.terminate()


def socat_rate(client: Path, place: Path, size: int) -> float:
    """Measure socat's throughput between two unix sockets, in blocks of this size."""
    with through_socat(client, place, size) as (_, writer):
        (rate,) = map(float, writer.communicate()[0].split())
    return rate


@contextmanager
def through_socat(
    client: Path, place: Path, size: int
) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """Yield a socat, and a client that writes through it to another."""
    source, sink = place / "source", place / "sink"
    addresses = [f"UNIX-LISTEN:{path},unlink-early" for path in (source, sink)]
    with running(["socat", "-u", "-b", str(size), *addresses]) as socat:
        wait_for(source)
        command = [str(client), "write", str(source), str(size), SECONDS]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            wait_for(sink)
            with running([str(client), "read", str(sink), str(size), "60"]):
                yield socat, writer


def wait_for(path: Path) -> None:
    """Wait until a process listens on a unix socket, without connecting to it."""
    listening = re.compile(rf" 00010000 .* {re.escape(str(path))}$", re.MULTILINE)
    while not listening.search(Path("/proc/net/unix").read_text()):
        time.sleep(0.01)


def least_pong(client: Path, place: Path) -> tuple[float, float]:
    """Return the sum of the ping-pongs of a bare socket and of a file."""
    path, mountpoint = place / "echo", place / "mnt"
    path.unlink(missing_ok=True)
    echo = [sys.executable, "-m", "benchmarks.trio_echo", str(path)]
    with running(echo) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()  # that it listens
        bare = ask(*echo, ROUNDS)
    null_fs = [sys.executable, "-m", "benchmarks.null_fs", "session", str(mountpoint)]
    with serving(null_fs, mountpoint):
        file = ask(str(client), "pingpong", str(mountpoint / "echo"), ROUNDS)
    return bare[0] + file[0], bare[1] + file[1]

"""Accepted data at an ending: it is delivered, or one line counts it as dropped."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest

from tests.support.limits import LONG
from tests.support.waiting import block_until

from .test_commands import VCONFS, daemon_of, folder, mounts

__all__ = ["folder"]

#: Bytes that a program writes into the port; less than the host's limit, and than any guest's.
SIZE = 900_000
#: Seconds that anything here may take.
LIMIT = 20.0
#: A time without progress that a test can wait for.
SOON = "300ms"

KINDS = ("unix", "connect", "tcp", "seqpacket", "pipe", "pty", "exec")
#: Whose kernel keeps nothing for them when we close, or that say themselves how much they read.
PROGRAM = """
import os, select, sys, time
go, got, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
total = 0
open(go + ".here", "w").close()
while not os.path.exists(go):
    time.sleep(0.01)
while data := os.read(0, 8192):
    total += len(data)
    time.sleep(pause)
    open(got, "w").write(str(total))
"""


class FarSide:
    """The client at the far side of a port: it reads slowly once it is allowed to, or never."""

    def __init__(self, kind: str, place: Path, tcp_port: int) -> None:
        self.kind = kind
        self.got = 0
        self.ended_well = False
        self._place = place
        self._pause = 0.003
        self._go = place / "go"
        self._tcp = ("127.0.0.1", tcp_port)
        self._descriptor = -1
        self._closing = ExitStack()
        self._thread: Thread | None = None
        self._listener: socket.socket | None = None
        if kind == "connect":
            self._listener = self._closing.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.bind(str(place / "s"))
            self._listener.listen()
            self._listener.settimeout(LIMIT)

    @property
    def chardev(self) -> str:
        place = self._place
        if self.kind == "exec":
            program = place / "program.py"
            program.write_text(PROGRAM)
            got = place / "got"
            return f"exec:exec {sys.executable} {program} {self._go} {got} {self._pause}"
        if self.kind == "tcp":
            return f"tcp:{self._tcp[0]}:{self._tcp[1]}"
        return f"{self.kind}:{place / 's'}"

    def come(self) -> None:
        """Connect, and take nothing yet."""
        if self.kind == "exec":
            return  # at the first open
        if self.kind in ("pipe", "pty"):
            path = self._place / ("s.out" if self.kind == "pipe" else "s")
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
            self._closing.callback(os.close, self._descriptor)
            if self.kind == "pty":
                tty.setraw(self._descriptor, termios.TCSANOW)
            return
        if self._listener is not None:
            client = self._listener.accept()[0]
        elif self.kind == "tcp":
            client = socket.create_connection(self._tcp, LIMIT)
        else:
            packets = socket.SOCK_SEQPACKET if self.kind == "seqpacket" else socket.SOCK_STREAM
            client = socket.socket(socket.AF_UNIX, packets)
            client.connect(str(self._place / "s"))
        self._closing.enter_context(client)
        client.setblocking(False)
        self._descriptor = client.fileno()

    def wait_started(self) -> None:
        """Of a program: wait until it runs, for it is started by the first open."""
        if self.kind == "exec":
            block_until(lambda: Path(f"{self._go}.here").exists())

    def begin(self) -> None:
        """Begin to read."""
        self._go.touch()
        if self.kind != "exec":
            self._thread = Thread(target=self._read)
            self._thread.start()

    def _read(self) -> None:
        size = 1 << 20 if self.kind == "seqpacket" else 8192
        while True:
            select.select([self._descriptor], [], [], LIMIT)
            try:
                data = os.read(self._descriptor, size)
            except OSError:
                return
            if not data:
                self.ended_well = True
                return
            self.got += len(data)
            time.sleep(self._pause)

    def finish(self) -> int:
        """Read to the end; how much there was."""
        if self.kind == "exec":
            with suppress(FileNotFoundError):
                self.got = int((self._place / "got").read_text() or 0)
            return self.got
        if self._thread is None:
            self.begin()
        assert self._thread is not None
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        return self.got

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join(LIMIT)
        self._closing.close()


@pytest.fixture(params=KINDS)
def far_side(
    request: pytest.FixtureRequest, tmp_path: Path, unused_tcp_port: int
) -> Iterator[FarSide]:
    place = tmp_path / "far"
    place.mkdir()
    far_side = FarSide(request.param, place, unused_tcp_port)
    yield far_side
    far_side.close()


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command of ours that goes on until it is ended, as it is in the end."""
    process = subprocess.Popen(
        ["env", "--default-signal", *VCONFS, *words], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def said_at_end(process: subprocess.Popen[str]) -> str:
    """Wait for the end, which is a good one; what it said."""
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    return said


def dropped(said: str) -> int:
    """Return how many bytes the one line counts, or 0 if there is none."""
    found = re.findall(r": (\d+) bytes were dropped, not delivered: ", said)
    assert len(found) <= 1, said
    return int(found[0]) if found else 0


@contextmanager
def mount_of(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    with running("mount", "-f", *words, str(folder)) as process:
        block_until(lambda: mounts(folder))
        yield process


def write(folder: Path, far_side: FarSide, size: int = SIZE) -> int:
    """Write into the port, as a program would that may not wait; how much was taken."""
    block_until(lambda: status(folder, "host"))
    with open(folder / "vcon0", "wb", buffering=0) as port:
        far_side.wait_started()
        taken = 0
        while taken < size:
            taken += port.write(bytes(min(1 << 16, size - taken)))
    return taken


@contextmanager
def held_open(folder: Path, mode: int) -> Iterator[None]:
    """Have the port open, also when its mount is gone in the end."""
    descriptor = os.open(folder / "vcon0", mode)
    try:
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)


def status(folder: Path, what: str) -> int:
    return int(os.getxattr(folder / "vcon0", f"user.{what}"))


def umount(folder: Path, *options: str) -> None:
    subprocess.run([*VCONFS, "umount", *options, str(folder)], check=True, timeout=LIMIT)


def terminate(folder: Path) -> None:
    os.kill(daemon_of(folder), signal.SIGTERM)


ENDS = {"umount": umount, "SIGTERM": terminate}


@pytest.mark.parametrize(("dialect", "end"), [("v8", "umount"), ("virtio1", "SIGTERM")])
def test_a_slow_far_side_gets_all_that_was_written(
    folder: Path, far_side: FarSide, dialect: str, end: str
) -> None:
    with mount_of(folder, "--dialect", dialect, "--port", f"p={far_side.chardev}") as process:
        far_side.come()
        assert write(folder, far_side) == SIZE
        far_side.begin()
        ENDS[end](folder)
        said = said_at_end(process)
    assert not mounts(folder)
    assert dropped(said) == 0
    assert far_side.finish() == SIZE
    if far_side.kind not in ("pty", "exec"):
        assert far_side.ended_well


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
def test_what_a_far_side_does_not_take_is_counted_to_the_byte(
    folder: Path, far_side: FarSide, dialect: str
) -> None:
    words = ("--dialect", dialect, "--port", f"name={far_side.chardev}", "-o", f"drain={SOON}")
    with mount_of(folder, *words) as process:
        far_side.come()
        with held_open(folder, os.O_WRONLY):  # a program whose guest has gone has less time
            assert write(folder, far_side) == SIZE
            umount(folder)
        said = said_at_end(process)
    if far_side.kind != "seqpacket":  # whose socket takes as much as this
        assert f"{dropped(said)} of vcon0 'name'\n" in said
    assert far_side.finish() + dropped(said) == SIZE


@pytest.mark.parametrize("far_side", ["unix"], indirect=True)
@pytest.mark.parametrize("how", ["umount -f", "umount twice", "two signals"])
def test_an_ending_can_be_immediate(folder: Path, far_side: FarSide, how: str) -> None:
    words = ("--port", f"name={far_side.chardev}", "-o", "drain=1000")
    with mount_of(folder, *words) as process:
        far_side.come()
        write(folder, far_side)
        if how == "umount -f":
            umount(folder, "-f")
        elif how == "umount twice":
            with subprocess.Popen([*VCONFS, "umount", str(folder)]) as first:
                block_until(lambda: refuses_writers(folder))
                umount(folder)
                assert first.wait(LIMIT) == 0
        else:
            daemon = daemon_of(folder)
            os.kill(daemon, signal.SIGTERM)
            block_until(lambda: refuses_writers(folder))
            os.kill(daemon, signal.SIGINT)
        said = said_at_end(process)
    assert not mounts(folder)
    assert far_side.finish() + dropped(said) == SIZE
    assert dropped(said) > 0


def refuses_writers(folder: Path) -> bool:
    try:
        with open(folder / "vcon0", "wb", buffering=0) as port:
            port.write(b"")
            return not select.select([], [port], [], 0)[1]
    except OSError:
        return True


@pytest.mark.parametrize("far_side", ["unix"], indirect=True)
def test_a_mount_that_drains_is_served_and_takes_no_more(folder: Path, far_side: FarSide) -> None:
    with mount_of(folder, "--port", f"p={far_side.chardev}") as process:
        far_side.come()
        write(folder, far_side)
        terminate(folder)
        block_until(lambda: refuses_writers(folder))
        with open(folder / "vcon0", "wb", buffering=0) as port:
            with pytest.raises(OSError, match="Transport endpoint is not connected"):
                port.write(b"late")
        assert (folder / "by-name" / "p").is_symlink()
        far_side.begin()
        assert dropped(said_at_end(process)) == 0
    assert far_side.finish() == SIZE


@pytest.mark.parametrize("far_side", ["unix"], indirect=True)
@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
def test_a_slow_reader_of_the_file_gets_all_that_the_host_sent(
    folder: Path, far_side: FarSide, tmp_path: Path, dialect: str
) -> None:
    with mount_of(folder, "--dialect", dialect, "--port", f"p={far_side.chardev}") as process:
        with socket.socket(socket.AF_UNIX) as client, open(folder / "vcon0", "rb", 0) as port:
            client.connect(str(tmp_path / "far" / "s"))
            client.sendall(bytes(SIZE))
            block_until(lambda: status(folder, "bytes_in") == SIZE)
            terminate(folder)
            got = 0
            while data := port.read(4096):
                got += len(data)
                time.sleep(0.001)
        said = said_at_end(process)
    assert dropped(said) == 0
    assert got == SIZE


@pytest.mark.parametrize("far_side", ["unix"], indirect=True)
@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
@pytest.mark.parametrize("opener", ["none", "writer", "reader"])
def test_unread_data_of_a_mount_is_counted(
    folder: Path, far_side: FarSide, tmp_path: Path, dialect: str, opener: str
) -> None:
    words = ("--dialect", dialect, "--port", f"p={far_side.chardev},cache", "-o", f"drain={SOON}")
    with mount_of(folder, *words) as process:
        with socket.socket(socket.AF_UNIX) as client, ExitStack() as opened:
            if opener != "none":
                mode = os.O_RDONLY if opener == "reader" else os.O_WRONLY
                opened.enter_context(held_open(folder, mode))
            client.connect(str(tmp_path / "far" / "s"))
            client.sendall(bytes(SIZE))
            block_until(lambda: status(folder, "bytes_in") == SIZE)
            umount(folder)
        said = said_at_end(process)
    assert dropped(said) == SIZE


@pytest.mark.parametrize("far_side", ["unix"], indirect=True)
@pytest.mark.parametrize("somebody", [True, False], ids=["read", "not open"])
def test_what_is_for_the_pty_beside_a_port_is_read_there_or_counted(
    folder: Path, far_side: FarSide, tmp_path: Path, somebody: bool
) -> None:
    size = 100_000  # more than a terminal holds
    words = ("--port", f"p={far_side.chardev},console", "-o", "drain=1000")
    with mount_of(folder, *words) as process:
        with socket.socket(socket.AF_UNIX) as client, ExitStack() as opened:
            if somebody:
                block_until((folder / "hvc0").exists)
                slave = os.open(folder / "hvc0", os.O_RDONLY | os.O_NOCTTY)
                opened.callback(os.close, slave)
            client.connect(str(tmp_path / "far" / "s"))
            client.sendall(bytes(size))
            block_until(lambda: status(folder, "bytes_in") == size)
            terminate(folder)
            got = 0
            with suppress(OSError):  # EIO: the terminal has gone
                while somebody and (data := os.read(slave, 1000)):
                    got += len(data)
                    time.sleep(0.002)
        said = said_at_end(process)
    assert got == (size if somebody else 0)
    assert dropped(said) == size - got


@contextmanager
def host_and_guest(
    folder: Path, listen: str, far_side: FarSide, *words: str, dialect: str = "v8"
) -> Iterator[subprocess.Popen[str]]:
    """A host end and a mount of it; the process of the host end."""
    url = f"{listen}:{folder.parent / 'device'}"
    spoken = ("--dialect", dialect)
    with running(
        "host", "--listen", url, *spoken, "--port", f"name={far_side.chardev}", *words
    ) as host:
        block_until((folder.parent / "device").exists)
        with mount_of(folder, "--device", url, *spoken):
            yield host


WAYS = [("stream:unix", "v8"), ("vhost-user", "v8"), ("vhost-user", "virtio1")]


@pytest.mark.parametrize(("listen", "dialect"), WAYS)
@pytest.mark.parametrize("far_side", ["unix", "pty", "exec"], indirect=True)
def test_a_host_end_that_is_ended_delivers_first(
    folder: Path, far_side: FarSide, listen: str, dialect: str
) -> None:
    with host_and_guest(folder, listen, far_side, dialect=dialect) as host:
        far_side.come()
        write(folder, far_side)
        block_until(lambda: status(folder, "bytes_out") == SIZE)
        far_side.begin()
        host.terminate()
        said = said_at_end(host)
        assert dropped(said) == 0
    assert far_side.finish() == SIZE


@pytest.mark.parametrize(("listen", "dialect"), WAYS)
@pytest.mark.parametrize("far_side", ["unix"], indirect=True)
def test_a_host_end_counts_what_it_could_not_deliver(
    folder: Path, far_side: FarSide, listen: str, dialect: str
) -> None:
    with host_and_guest(folder, listen, far_side, "--drain", SOON, dialect=dialect) as host:
        far_side.come()
        write(folder, far_side)
        host.terminate()
        said = said_at_end(host)
        assert far_side.finish() + dropped(said) == SIZE
        assert f"{dropped(said)} of port 'name'\n" in said


@pytest.mark.parametrize("far_side", ["unix"], indirect=True)
def test_a_second_signal_ends_a_host_end_at_once(folder: Path, far_side: FarSide) -> None:
    with host_and_guest(folder, "stream:unix", far_side, "--drain", "1000") as host:
        far_side.come()
        write(folder, far_side)
        host.terminate()
        block_until(lambda: status(folder, "throttled"))
        host.send_signal(signal.SIGINT)
        said = said_at_end(host)
        assert far_side.finish() + dropped(said) == SIZE


#: Each kind of far side is waited for or given up, at a removal and a disconnect; for most of them
#: one kind of guest is enough.
ASKED = [
    (kind, listen, *rest)
    for kind in KINDS
    for listen, *rest in (
        ("stream:unix", "v8", "remove", True),
        ("stream:unix", "v8", "disconnect", False),
        ("vhost-user", "virtio1", "remove", False),
        ("vhost-user", "virtio1", "disconnect", True),
    )
    if listen == "stream:unix" or kind in ("unix", "exec") or LONG
]


@pytest.mark.parametrize(
    ("far_side", "listen", "dialect", "action", "slow"), ASKED, indirect=["far_side"]
)
def test_ctl_waits_for_the_far_side(
    folder: Path, far_side: FarSide, listen: str, dialect: str, action: str, slow: bool
) -> None:
    if far_side.kind == "pipe":
        action = "remove"  # fifos have no client that could be hung up
    control = str(folder.parent / "control")
    words = ("--control", control, *(() if slow else ("--drain", SOON)))
    with host_and_guest(folder, listen, far_side, *words, dialect=dialect) as host:
        far_side.come()
        with held_open(folder, os.O_WRONLY):  # a program whose guest has gone has less time
            write(folder, far_side)
            if slow:
                far_side.begin()
            subprocess.run([*VCONFS, "ctl", control, action, "name"], check=True, timeout=LIMIT)
        got = far_side.finish()
        host.terminate()
        said = said_at_end(host)
        assert got + dropped(said) == SIZE
        # The buffer of a seqpacket socket takes as much as this.
        assert (dropped(said) == 0) == (slow or far_side.kind == "seqpacket")


def test_the_time_is_an_option(folder: Path) -> None:
    for words in (["mount", "-o", "drain=soon", str(folder)], ["host", "--drain", "soon"]):
        extra = ["--listen", "stream:stdio"] if words[0] == "host" else []
        done = subprocess.run(
            [*VCONFS, *words, *extra], capture_output=True, text=True, check=False, timeout=LIMIT
        )
        assert done.returncode == 2
        assert "is a time like 5s, 500ms or 2m, not 'soon'" in done.stderr

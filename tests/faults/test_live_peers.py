"""Daemons whose peer breaks one thing at a time, again and again: all else goes on in time.

The peer may be turned away for it. The next connection, and the port that is honest, work at once.
`VCONFS_LONG=1` goes on for a minute on each device, `VCONFS_SEED` repeats a run.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
from attrs import define, field

from tests.support.limits import LONG
from vconfs.protocol.stream import Role

from .hostile import LIMIT, hostile_host, resident
from .live_peers import ENDINGS, BackEndPeer, FrontEndPeer, Peer, StreamPeer

T = TypeVar("T")

SECONDS = 60.0 if LONG else 2.0
#: Seconds that an echo, and an answer, may take.
IN_TIME = 0.2
#: What the memory of a daemon may grow by, in MiB.
SLACK = 64
#: What the memory of a mount may be, in MiB.
MOUNT_MAX = 128


def assert_in_time(act: Callable[[], float]) -> None:
    """Act, once more if it took too long: other programs may have kept the processors busy."""
    took = [act()]
    if took[0] > IN_TIME:
        took.append(act())
    assert min(took) < IN_TIME, took


def stream_guest(folder: Path) -> Peer:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LIMIT)
    sock.connect(str(folder / "s"))
    return StreamPeer(sock, Role.GUEST)


def stream_host(sock: socket.socket) -> Peer:
    return StreamPeer(sock, Role.HOST)


@define
class Rounds:
    """Has peers break one thing after the other, with an echo between each two."""

    connect: Callable[[], Peer]
    echo: Callable[[Peer], float]
    beside: Callable[[], float]
    count: int = 0
    reconnected: int = 0
    _peer: Peer | None = field(init=False, default=None)

    def run(self, numbers: random.Random) -> None:
        try:
            self._echoing()
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                peer = self._echoing()
                self.count += 1
                try:
                    whole = peer.break_one(numbers)
                except ENDINGS:
                    whole = False
                assert_in_time(self.beside)
                if not peer.settle() or not whole:
                    self._hang_up()
            self._echoing()
        finally:
            self._hang_up()
        print(f"{self.count} things broken, {self.reconnected} connections")

    def _echoing(self) -> Peer:
        """Return a peer whose honest port has echoed in time."""
        peer = self._peer
        if peer is not None:
            try:
                assert_in_time(lambda: self.echo(peer))
            except ENDINGS:  # for what was broken
                self._hang_up()
            else:
                return peer
        new = self._peer = self.connect()
        self.reconnected += 1
        assert_in_time(lambda: self.echo(new))
        return new

    def _hang_up(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None


@pytest.mark.limit(SECONDS + 60)
@pytest.mark.parametrize(
    ("url", "connect"), [("stream:unix", stream_guest), ("vhost-user", FrontEndPeer)]
)
def test_a_guest_that_breaks_one_thing_at_a_time(
    tmp_path: Path, numbers: random.Random, url: str, connect: Callable[[Path], Peer]
) -> None:
    def echo(peer: Peer) -> float:
        word = b"<%d>" % numbers.getrandbits(64)
        begun = time.monotonic()
        peer.send(word)
        peer.until(lambda: word in peer.came)
        peer.came = b""
        return time.monotonic() - begun

    with hostile_host(tmp_path, url, "--port", "honest=echo", "--port", "other=echo") as host:
        before = host.resident
        Rounds(lambda: connect(tmp_path), echo, host.list).run(numbers)
        assert host.resident < before + SLACK
        host.ends()
        assert "Traceback" not in "\n".join(host.said)


@define
class Mount:
    """A mount as a program, whose files are used in a thread: calls may have to wait for us."""

    folder: Path
    process: subprocess.Popen[bytes]
    thread: ThreadPoolExecutor
    file: int = -1

    def echo(self, peer: Peer) -> float:
        """Write to port 0, and read what its host sends back; return how long that took."""
        if self.file < 0:
            path = self.folder / "mnt" / "vcon0"
            self.file = self._soon(peer, lambda: os.open(path, os.O_RDWR | os.O_NONBLOCK))
        word = b"<%d>" % random.getrandbits(64)
        begun = time.monotonic()
        self._soon(peer, lambda: os.write(self.file, word))
        peer.until(lambda: word in peer.came)
        peer.came = b""
        peer.send(word)
        got = b""
        while word not in got:
            got += self._soon(peer, lambda: os.read(self.file, 4096))
            assert time.monotonic() < begun + LIMIT
        return time.monotonic() - begun

    def beside(self) -> float:
        """Ask for an attribute; return how long that took."""
        begun = time.monotonic()
        path = self.folder / "mnt"
        self.thread.submit(os.getxattr, path, "user.pid").result(LIMIT)
        return time.monotonic() - begun

    def _soon(self, peer: Peer, call: Callable[[], T]) -> T:
        end = time.monotonic() + LIMIT
        while True:
            try:
                return self.thread.submit(call).result(LIMIT)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOTCONN, errno.ENOENT):
                    raise
                assert time.monotonic() < end
                assert self.process.poll() is None, (self.folder / "log").read_text()
                peer.pump(0.002)


@contextmanager
def mounted(folder: Path, url: str) -> Iterator[Mount]:
    (folder / "mnt").mkdir()
    words = ["mount", "-f", "--device", f"{url}:{folder}/s", "-o", "drain=1s", str(folder / "mnt")]
    with ExitStack() as stack, (folder / "log").open("wb") as log:
        thread = stack.enter_context(ThreadPoolExecutor(1))
        process = subprocess.Popen([sys.executable, "-m", "vconfs", *words], stdout=log, stderr=log)
        mount = Mount(folder, process, thread)
        try:
            yield mount
        finally:
            process.kill()
            process.wait()
            if mount.file >= 0:
                with suppress(OSError):  # the mount is gone
                    os.close(mount.file)
            umount = ["umount", "-l", str(folder / "mnt")]
            subprocess.run(umount, stderr=subprocess.DEVNULL, check=False)


@pytest.mark.limit(SECONDS + 60)
@pytest.mark.parametrize(
    ("url", "make"), [("stream:unix", stream_host), ("vhost-user", BackEndPeer)]
)
def test_a_host_that_breaks_one_thing_at_a_time(
    tmp_path: Path, numbers: random.Random, url: str, make: Callable[[socket.socket], Peer]
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(LIMIT)

        def connect() -> Peer:
            while True:
                sock, _ = listener.accept()
                with suppress(*ENDINGS):  # it may have left before we came
                    return make(sock)

        with mounted(tmp_path, url) as mount:
            Rounds(connect, mount.echo, mount.beside).run(numbers)
            assert resident(mount.process.pid) < MOUNT_MAX
            mount.process.terminate()
            assert mount.process.wait(LIMIT) == 0
            said = (tmp_path / "log").read_text()
            assert "Traceback" not in said

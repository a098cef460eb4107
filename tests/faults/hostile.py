"""Peers that break the rules on purpose, against `vconfs host` as a program."""

from __future__ import annotations

import array
import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from attrs import define

from tests.support.waiting import block_until

GUEST, USER = 0x1000_0000, 0x7F00_0000_0000
NEED_REPLY = 8
#: v8 with both of its features, and VIRTIO_F_VERSION_1.
FEATURES = 1 << 32 | 1 << 23 | 1 << 1 | 1 << 0
#: MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
PROTOCOL = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15
#: Seconds that an answer may take while other programs keep the processors busy.
IN_TIME = 2.0
#: Seconds that a program has to start, or to end.
LIMIT = 15.0


def resident(pid: int) -> int:
    """How much memory a process holds, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10


@define(eq=False)
class HostProgram:
    """A host end that runs with a control socket."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def said(self) -> list[str]:
        """Its output, without the line that it listens."""
        lines = (self.folder / "log").read_text().splitlines()
        return [line for line in lines if "listening on" not in line]

    @property
    def resident(self) -> int:
        """How much memory it holds, in MiB."""
        return resident(self.process.pid)

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def list(self) -> float:
        """Ask for its ports; return how many seconds that took."""
        begun = time.monotonic()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LIMIT)
            sock.connect(str(self.folder / "control"))
            with sock.makefile("rwb") as stream:
                stream.readline()
                stream.write(b'{"op": "list"}\n')
                stream.flush()
                assert json.loads(stream.readline())["ports"]
        return time.monotonic() - begun

    def answers(self, seconds: float = 1.0) -> None:
        """Check that it answers in time, again and again for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.list() < IN_TIME
            time.sleep(0.05)

    def ends(self) -> None:
        """Check that it ends when it is asked to."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(LIMIT) == 0


@contextmanager
def hostile_host(folder: Path, url: str, *words: str, nofile: int = 1024) -> Iterator[HostProgram]:
    """Run a host end that listens at `url` in the folder."""
    command = [sys.executable, "-m", "vconfs", "host", "--listen", f"{url}:{folder}/s", *words]
    limit = ["prlimit", f"--nofile={nofile}:{nofile}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*limit, *command, "--control", f"{folder}/control"], stdout=log, stderr=log
        )
        host = HostProgram(process, folder)
        try:
            block_until(lambda: b"listening on" in (folder / "log").read_bytes())
            yield host
        finally:
            process.kill()
            process.wait()


class RawFrontEnd:
    """A vhost-user front-end that says what it likes."""

    def __init__(self, folder: Path, size: int = 1 << 20) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(str(folder / "s"))
        self.size = size
        self.memfd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memfd, size)
        self.memory = mmap.mmap(self.memfd, size)
        self.kicks = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2)]
        self.calls = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2)]

    def close(self) -> None:
        self.sock.close()
        self.memory.close()
        for fd in (self.memfd, *self.kicks, *self.calls):
            os.close(fd)

    def say(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), more: int = 0
    ) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        header = struct.pack("=III", request, 1 | more, len(payload))
        self.sock.sendmsg([header + payload], rights)

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        self.say(request, payload, fds, NEED_REPLY)
        _, _, size = struct.unpack("=III", self.sock.recv(12, socket.MSG_WAITALL))
        return self.sock.recv(size, socket.MSG_WAITALL) if size else b""

    def ended(self) -> bool:
        """Wait for the end of the connection."""
        try:
            return not self.sock.recv(1)
        except ConnectionResetError:
            return True

    def negotiate(self) -> None:
        self.say(3)
        self.ask(1)
        self.ask(15)
        self.say(16, struct.pack("=Q", PROTOCOL))
        self.say(2, struct.pack("=Q", FEATURES | 1 << 30))

    def share(self, fd: int | None = None) -> None:
        region = struct.pack("=QQQQ", GUEST, self.size, USER, 0)
        self.say(5, struct.pack("=II", 1, 0) + region, [self.memfd if fd is None else fd])

    def start(self, index: int, num: int, desc: int, avail: int, used: int) -> None:
        """Start a ring whose parts are there already."""
        self.say(8, struct.pack("=II", index, num))
        self.say(10, struct.pack("=II", index, 0))
        where = (USER + desc, USER + used, USER + avail, 0)
        self.say(9, struct.pack("=IIQQQQ", index, 0, *where))
        self.say(13, struct.pack("=Q", index), [self.calls[index]])
        self.say(12, struct.pack("=Q", index), [self.kicks[index]])
        self.say(18, struct.pack("=II", index, 1))


@contextmanager
def raw_front_end(folder: Path, size: int = 1 << 20) -> Iterator[RawFrontEnd]:
    front = RawFrontEnd(folder, size)
    try:
        yield front
    finally:
        front.close()


@contextmanager
def lingering_socket(seconds: int = 10) -> Iterator[socket.socket]:
    """A TCP socket with unsent data, whose last close waits for some seconds."""
    with socket.socket() as listener, socket.socket() as sock:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        sock.connect(listener.getsockname())
        peer, _ = listener.accept()
        sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        linger = struct.pack("ii", 1, seconds)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        yield sock
        peer.close()  # which ends all waiting


#: Clears all flags of a descriptor without end.
_FLIPPER = """
import fcntl, os, sys
from tests.support.waiting import block_until
while os.getppid() == int(sys.argv[2]):
    for _ in range(10000):
        fcntl.fcntl(int(sys.argv[1]), fcntl.F_SETFL, os.O_RDWR)
"""


@contextmanager
def flipping(fd: int) -> Iterator[None]:
    """Have another process clear the O_NONBLOCK of a descriptor, again and again."""
    command = [sys.executable, "-c", _FLIPPER, str(fd), str(os.getpid())]
    process = subprocess.Popen(command, pass_fds=[fd])
    try:
        yield
    finally:
        process.kill()
        process.wait()


class DeafFuse:
    """A FUSE file system of one file, `x`, that leaves some kinds of requests unanswered.

    Numbers of requests are those of linux/fuse.h.
    """

    GETATTR, READ, FLUSH = 3, 15, 25
    _INIT, _LOOKUP, _OPEN, _NO_ANSWER = 26, 1, 14, (2, 42, 36)

    def __init__(self, folder: Path, deaf_to: int) -> None:
        self.deaf_to = deaf_to
        self.unanswered = 0
        self._folder = folder
        self._fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
        self._libc = ctypes.CDLL(None, use_errno=True)
        folder.mkdir()
        if self._libc.mount(b"deaf", os.fsencode(folder), b"fuse.deaf", 6, options.encode()):
            os.close(self._fuse)
            pytest.skip("only root may mount without fusermount3")
        threading.Thread(target=self._serve, daemon=True).start()

    def gone(self) -> None:
        """End it; what waits for it goes on."""
        self._libc.umount2(os.fsencode(self._folder), 3)
        os.close(self._fuse)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                self._answer(os.read(self._fuse, 1 << 18))

    def _answer(self, request: bytes) -> None:
        _, kind, unique, node = struct.unpack_from("=IIQQ", request)
        lasting = 0 if self.deaf_to == self.GETATTR else 1000
        if kind == self.deaf_to and node != 1:
            self.unanswered += 1
        elif kind == self._INIT:
            fields = (7, 31, 65536, 0, 64, 48, 1 << 17, 1, 32, 0, 0)
            self._reply(unique, struct.pack("=IIIIHHIIHHI28x", *fields))
        elif kind == self.GETATTR:
            mode = 0o40755 if node == 1 else 0o100666
            self._reply(unique, struct.pack("=QII", lasting, 0, 0) + self._attributes(node, mode))
        elif kind == self._LOOKUP:
            entry = struct.pack("=QQQQII", 2, 1, 1000, lasting, 0, 0)
            self._reply(unique, entry + self._attributes(2, 0o100666))
        elif kind == self._OPEN:
            self._reply(unique, struct.pack("=QII", 1, 0, 0))
        elif kind not in self._NO_ANSWER:
            self._reply(unique, b"", -38)

    def _attributes(self, node: int, mode: int) -> bytes:
        fields = (node, 1 << 20, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
        return struct.pack("=QQQqqqIIIIIIIIII", *fields)

    def _reply(self, unique: int, body: bytes, error: int = 0) -> None:
        os.write(self._fuse, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


@contextmanager
def deaf_file(folder: Path, deaf_to: int) -> Iterator[tuple[int, DeafFuse]]:
    """A descriptor of a file whose file system does not answer a kind of request."""
    fuse = DeafFuse(folder, deaf_to)
    try:
        yield os.open(folder / "x", os.O_RDWR | os.O_CLOEXEC), fuse
    finally:
        fuse.gone()

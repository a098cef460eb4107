"""Does with files what a test elsewhere asks for: `python -m tests.support.remote.worker [TTY]`.

It runs where the files are, in a guest say, and needs nothing but Python. Without a tty its
standard input is a socket to the test. The test's end is `client`. Requests and answers are lines
of JSON, with bytes as latin-1 text:

    [id, call, [arguments]]  ->  [id, result, 0], [id, null, errno] or [id, what went wrong, -1]

Each request has a thread of its own, so that one which waits holds up no other. A call that waits
for something to hold looks again when it can have changed, and gives up after PATIENCE.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 20.0
_STEP = 0.01
_ANY = select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP


def write(descriptor: int, data: str, times: int) -> int:
    return os.write(descriptor, data.encode("latin-1") * times)


def read(descriptor: int, size: int) -> str:
    return os.read(descriptor, size).decode("latin-1")


def write_repeated(descriptor: int, unit: str, size: int) -> int:
    """Write `unit` again and again, `size` bytes in all; less only where that would wait."""
    data = memoryview(unit.encode("latin-1") * (size // len(unit) + 1))[:size]
    done = 0
    while done < size:
        try:
            done += os.write(descriptor, data[done : done + (1 << 20)])
        except BlockingIOError:
            break
    return done


def read_digest(descriptor: int, size: int) -> str:
    """Read `size` bytes and return their SHA-256."""
    digest = hashlib.sha256()
    while size:
        data = os.read(descriptor, min(size, 1 << 20))
        if not data:
            raise EOFError
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


def poll(descriptor: int) -> int:
    """Return the events of poll(2) that are there now."""
    waiter = select.poll()
    waiter.register(descriptor, _ANY)
    return sum(mask for _, mask in waiter.poll(0))


def poll_until(descriptor: int, wanted: int, unwanted: int) -> int:
    """Wait until all bits of `wanted` are there and none of `unwanted`; give what there is."""
    deadline = time.monotonic() + PATIENCE
    with select.epoll() as changes:
        changes.register(descriptor, _ANY | select.EPOLLET)
        while True:
            mask = poll(descriptor)
            left = deadline - time.monotonic()
            if (mask & wanted == wanted and not mask & unwanted) or left <= 0:
                return mask
            changes.poll(left)


def exists_until(path: str, wanted: bool) -> bool:
    """Wait until a path exists, or does not. Return True if it came to that in time."""
    return _until(lambda: os.path.lexists(path) == wanted) == wanted


def kernel_port(name: str) -> str:
    """Wait for the kernel's port of that name; its device file."""
    found: list[str] = []

    def look() -> bool:
        for path in Path("/sys/class/virtio-ports").glob("*/name"):
            if path.read_text().strip() == name:
                found.append(f"/dev/{path.parent.name}")
        return bool(found)

    _until(look)
    return found[0]


def _until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(_STEP)  # nothing tells of changes in sysfs
    return True


def run(command: str) -> tuple[int, str]:
    """Run a shell command; its status, and all that it said."""
    done = subprocess.run(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode("latin-1")


def leave(status: int) -> None:
    os._exit(status)


CALLS: dict[str, Callable[..., Any]] = {
    call.__name__: call
    for call in (
        *(write, read, write_repeated, read_digest, poll, poll_until),
        *(exists_until, kernel_port, run, leave),
        *(os.open, os.close, os.listdir, os.readlink, os.set_blocking),
    )
} | {"getxattr": lambda path, name: os.getxattr(path, name).decode("latin-1")}


def main(path: str = "") -> None:
    if path:
        descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(descriptor)
    else:
        descriptor = sys.stdin.fileno()
    one_at_a_time = threading.Lock()

    def answer(call_id: int, call: str, arguments: list[Any]) -> None:
        result, error = None, 0
        try:
            result = CALLS[call](*arguments)
        except OSError as raised:
            error = raised.errno or 0
        except Exception as raised:
            result, error = repr(raised), -1
        line = json.dumps([call_id, result, error]).encode() + b"\n"
        with one_at_a_time:
            while line:
                line = line[os.write(descriptor, line) :]

    with os.fdopen(os.dup(descriptor), "rb") as requests:
        answer(0, "poll", [descriptor])  # says that we are here
        for request in requests:
            threading.Thread(target=answer, args=json.loads(request), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])

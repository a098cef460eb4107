"""A far and lossy line between two network namespaces, for kernels that have no netem.

To be run in the first one: `python far_line.py PID DELAY LOSS`, where PID is a process in the
second one, DELAY is in seconds each way and LOSS is the share of packets that get lost. It says
"ready", and ends with its standard input.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET_MAX = 1 << 16
#: A line that is full loses packets, as lines do.
_QUEUE_MAX = 1000


def enter(pid: int) -> None:
    """Go to the network namespace of a process."""
    with open(f"/proc/{pid}/ns/net") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def open_end(address: str) -> int:
    """Make a network interface of this namespace whose other side is the descriptor."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"far0", _IFF_TUN | _IFF_NO_PI))
    subprocess.run(["ip", "addr", "add", address, "dev", "far0"], check=True)
    subprocess.run(["ip", "link", "set", "far0", "up"], check=True)
    return tun


def carry(ends: tuple[int, int], delay: float, loss: float) -> None:
    """Carry packets both ways until our input ends."""
    numbers = random.Random(0)
    under_way: deque[tuple[float, int, bytes]] = deque()  # when, to whom, what
    stdin = sys.stdin.fileno()
    other = dict(zip(ends, reversed(ends), strict=True))
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([*ends, stdin], [], [], wait)
        if stdin in readable:
            return
        for end in readable:
            packet = os.read(end, _PACKET_MAX)
            if numbers.random() >= loss and len(under_way) < _QUEUE_MAX:
                under_way.append((time.monotonic() + delay, other[end], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, packet = under_way.popleft()
            with suppress(OSError):  # its interface is down
                os.write(end, packet)


def main() -> None:
    pid, delay, loss = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    first = open_end("10.77.0.1/24")
    enter(pid)
    second = open_end("10.77.0.2/24")
    os.write(sys.stdout.fileno(), b"ready\n")
    carry((first, second), delay, loss)


if __name__ == "__main__":
    main()

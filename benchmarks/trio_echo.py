"""Two trio programs on a bare unix socket: `python -m benchmarks.trio_echo PATH [ROUNDS]`.

Without ROUNDS it listens, prints "ready", and sends back what its client sends. With ROUNDS it is
the client: it prints the median and the 99th percentile of a round, in microseconds.
"""

from __future__ import annotations

import socket
import sys
import time
from statistics import quantiles

import trio

WARM_UP = 200


async def listen(path: str) -> None:
    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        client, _ = await listener.accept()
        with client:
            while data := await client.recv(1 << 16):
                await client.send(data)


async def measure(path: str, rounds: int) -> None:
    took = []
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.connect(path)
        for _ in range(WARM_UP + rounds):
            start = time.perf_counter()
            await sock.send(b"x")
            await sock.recv(1 << 16)
            took.append(time.perf_counter() - start)
    cuts = quantiles(took[WARM_UP:], n=100)
    print(f"{cuts[49] * 1e6:.2f} {cuts[98] * 1e6:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        trio.run(measure, sys.argv[1], int(sys.argv[2]))
    else:
        trio.run(listen, sys.argv[1])

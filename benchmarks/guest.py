"""Our driver compared with Linux's, in one booted guest with QEMU as the host: `make bench-guest`.

Both have a virtio console of the same kind: ours uses VFIO, Python and FUSE, Linux's is /dev/vport.
The emulated processor makes Python about 16 times slower, but the work that the kernel and QEMU do
per block much less. The goal is the same throughput with large blocks.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from attrs import frozen

from benchmarks.measure import Samples, build, report
from tests.guest.guest import (
    CACHE,
    KERNELS,
    MOUNTPOINT,
    VCONFS,
    VECTORS,
    Console,
    Guest,
    fetch,
    open_guest,
)
from tests.support.remote.client import Remote
from vconfs.system.tasks import open_background

BLOCKS = {"4 KiB": 4096, "128 KiB": 128 << 10, "1 MiB": 1 << 20}
REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "5"))
SECONDS = "1"
ROUNDS = "500"

#: The program at the other end of a port's socket.
Host = Callable[[trio.SocketStream], Awaitable[None]]


async def send(stream: trio.SocketStream) -> None:
    data = bytes(1 << 20)
    while True:
        await stream.send_all(data)


async def receive(stream: trio.SocketStream) -> None:
    while await stream.receive_some(1 << 20):
        pass


async def echo(stream: trio.SocketStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@frozen
class Peer:
    """A driver's port, and the benchmarks' client on it."""

    guest: Guest
    remote: Remote
    device: Console
    file: str
    client: Path

    async def ask(self, host: Host, what: str, how: str) -> list[float]:
        async with await self.guest.connect(self.device.data) as stream:
            descriptor = await self.remote.open(self.file)
            await self.remote.connected(descriptor)
            await self.remote.close(descriptor)
            async with open_background() as nursery:
                nursery.start_soon(host, stream)
                said = await self.remote.run(f"{self.client} {what} {self.file} {how}")
        return [float(word) for word in said.split()]

    async def measure(self, name: str, samples: Samples) -> None:
        for block, size in BLOCKS.items():
            for direction, host in (("write", receive), ("read", send)):
                (rate,) = await self.ask(host, direction, f"{size} {SECONDS}")
                samples[f"{direction} {block}", name].append(rate / 1e6)
        middle, late = await self.ask(echo, "pingpong", ROUNDS)
        samples["ping-pong", name].append(middle)
        samples["ping-pong p99", name].append(late)


async def measure(guest: Guest, client: Path, samples: Samples) -> None:
    await guest.wait_booted()
    async with guest.open_remote() as remote:
        await remote.run(f"mkdir -p {MOUNTPOINT}")
        await remote.run(f"{VCONFS} mount --device pci:{VECTORS.address} --bind {MOUNTPOINT}")
        ours = f"{MOUNTPOINT}/by-name/{VECTORS.data}"
        theirs = await remote.kernel_port(KERNELS.data)
        peers = {
            "vconfs": Peer(guest, remote, VECTORS, ours, client),
            "linux": Peer(guest, remote, KERNELS, theirs, client),
        }
        for _ in range(REPETITIONS):
            for name, peer in peers.items():
                await peer.measure(name, samples)


def run() -> str | None:
    if problem := fetch():
        return problem
    samples: Samples = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="vconfs-bench-") as folder:
        client = build("client.c", Path(folder))
        with open_guest(Path(folder), CACHE) as guest:
            trio.run(measure, guest, client, samples)
    report(samples, ("vconfs", "linux"), ("vconfs", "linux"))
    return None


if __name__ == "__main__":
    sys.exit(run())

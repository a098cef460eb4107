"""Our driver compared with Linux's, each at its full speed: `make bench-guest`.

Both are front-ends of vhost-user, and each has a `vconfs host` of its own as the back-end. Linux's
runs in user-mode Linux. All run on one processor. In user-mode Linux a system call takes about
20 us, which its client needs for each block.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from benchmarks.measure import Samples, ask, build, one_cpu, report
from tests.support.remote.client import Remote
from tests.uml import kernels
from tests.uml.machine import Guest, open_guest
from vconfs.fuse import is_mounted

BLOCKS = {"4 KiB": 4096, "128 KiB": 128 << 10, "1 MiB": 1 << 20}
REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "5"))
SECONDS = "0.4"
ROUNDS = "2000"
#: The ports, by their purpose.
PORTS = {"write": "null", "read": "zero", "pingpong": "echo"}
VCONFS = (sys.executable, "-m", "vconfs")


@contextmanager
def host(device: Path) -> Iterator[None]:
    """Run a back-end for one guest end."""
    ports = [f"--port={use}={chardev}" for use, chardev in PORTS.items()]
    listen = ["--listen", f"vhost-user:{device}", "--dialect", "virtio1"]
    command = [*VCONFS, "host", *listen, *ports]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            if "listening" not in said:
                raise RuntimeError(said)
            yield
        finally:
            process.kill()


@contextmanager
def mounted(device: Path, mountpoint: Path) -> Iterator[None]:
    """Mount the ports of a back-end."""
    mountpoint.mkdir()
    url = f"vhost-user:{device}"
    mount = [*VCONFS, "mount", "--device", url, "--dialect", "virtio1", str(mountpoint)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        if is_mounted(mountpoint):
            subprocess.run([*VCONFS, "umount", str(mountpoint)], check=True)


class Ours:
    """The client at our mount."""

    def __init__(self, client: Path, mountpoint: Path) -> None:
        self._client = str(client)
        self._mountpoint = mountpoint

    async def ask(self, what: str, how: str) -> list[float]:
        file = str(self._mountpoint / "by-name" / what)
        return await trio.to_thread.run_sync(ask, self._client, what, file, *how.split())


class Linuxs:
    """The client in the guest."""

    def __init__(self, client: Path, remote: Remote) -> None:
        self._client = client
        self._remote = remote

    async def ask(self, what: str, how: str) -> list[float]:
        file = await self._remote.kernel_port(what)
        said = await self._remote.run(f"{self._client} {what} {file} {how}")
        return [float(word) for word in said.split()]


async def measure(guest: Guest, client: Path, mountpoint: Path, samples: Samples) -> None:
    if not await guest.boots():
        raise RuntimeError(f"the guest does not boot:\n{guest.console}")
    async with guest.open_remote() as remote:
        await remote.run(f"busybox insmod {guest.kernel.module('virtio_console')}")
        peers: dict[str, Ours | Linuxs] = {
            "vconfs": Ours(client, mountpoint),
            "linux": Linuxs(client, remote),
        }
        for _ in range(REPETITIONS):
            for name, peer in peers.items():
                for block, size in BLOCKS.items():
                    for what in ("write", "read"):
                        (rate,) = await peer.ask(what, f"{size} {SECONDS}")
                        samples[f"{what} {block}", name].append(rate / 1e6)
                middle, late = await peer.ask("pingpong", ROUNDS)
                samples["ping-pong", name].append(middle)
                samples["ping-pong p99", name].append(late)


def run() -> None:
    found = kernels.find()
    if not found.kernels:
        raise SystemExit("\n".join(found.put_aside.values()))
    samples: Samples = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="vconfs-bench-") as folder, one_cpu():
        place = Path(folder)
        ours, linuxs, mountpoint = place / "ours", place / "linuxs", place / "mnt"
        client = build("client.c", place)
        with host(ours), host(linuxs), mounted(ours, mountpoint):
            with open_guest(place, found.newest, [linuxs]) as guest:
                trio.run(measure, guest, client, mountpoint, samples)
    report(samples, ("vconfs", "linux"), ("vconfs", "linux"))


if __name__ == "__main__":
    run()

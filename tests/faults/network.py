"""Two hosts in two network namespaces, and a far and lossy line between them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import frozen

from tests.support.waiting import until

from . import far_line

ADDRESSES = ("10.77.0.1", "10.77.0.2")
#: 30 ms there and back, and 1 % of what either side sends.
DELAY, LOSS = 0.015, 0.01


@frozen
class Network:
    """Two network namespaces, by a process in each."""

    pids: tuple[int, int]

    def inside(self, which: int) -> tuple[str, ...]:
        """Return the words before a command that make it run on one of the two hosts."""
        return ("nsenter", "-t", str(self.pids[which]), "-n")

    async def run(self, which: int, *words: str) -> str:
        """Run a command on one of the two hosts; give what it says when it fails."""
        done = await trio.run_process(
            [*self.inside(which), *words], capture_stderr=True, check=False
        )
        return done.stderr.decode() if done.returncode else ""


@asynccontextmanager
async def open_network() -> AsyncIterator[Network]:
    """Make the two hosts and the line, for as long as the block runs."""
    if os.geteuid():
        pytest.skip("network namespaces need root")
    async with _namespace() as first, _namespace() as second:
        network = Network((first, second))
        for which in (0, 1):
            assert not await network.run(which, "ip", "link", "set", "lo", "up")
        if await _lay_netem_line(network):
            yield network
        elif Path("/dev/net/tun").exists():
            async with _lay_tun_line(network):
                yield network
        else:
            pytest.skip("the kernel has neither sch_netem nor tun")


@asynccontextmanager
async def _namespace() -> AsyncIterator[int]:
    holder = await trio.lowlevel.open_process(["unshare", "--net", "sleep", "infinity"])
    try:
        ours = os.readlink("/proc/self/ns/net")
        await until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != ours)
        yield holder.pid
    finally:
        holder.kill()
        with trio.CancelScope(shield=True):
            await holder.wait()


async def _lay_netem_line(network: Network) -> bool:
    """Lay a line with the kernel's own delay and loss; False: it does not have them."""
    peer = ("peer", "far0", "netns", str(network.pids[1]))
    veth = ("ip", "link", "add", "far0", "type", "veth", *peer)
    assert not await network.run(0, *veth)
    for which, address in enumerate(ADDRESSES):
        netem = ("netem", "delay", f"{1000 * DELAY:.0f}ms", "loss", f"{100 * LOSS:.0f}%")
        complaint = await network.run(which, "tc", "qdisc", "add", "dev", "far0", "root", *netem)
        if "Specified qdisc kind is unknown" in complaint:
            assert not await network.run(which, "ip", "link", "del", "far0")
            return False
        assert not complaint
        add = ("ip", "addr", "add", f"{address}/24", "dev", "far0")
        assert not await network.run(which, *add)
        assert not await network.run(which, "ip", "link", "set", "far0", "up")
    return True


@asynccontextmanager
async def _lay_tun_line(network: Network) -> AsyncIterator[None]:
    words = (sys.executable, far_line.__file__, str(network.pids[1]), str(DELAY), str(LOSS))
    line = await trio.lowlevel.open_process(
        [*network.inside(0), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert line.stdin is not None
    assert line.stdout is not None
    try:
        assert await line.stdout.receive_some() == b"ready\n"
        yield
    finally:
        line.kill()
        with trio.CancelScope(shield=True):
            await line.wait()
            await line.stdin.aclose()
            await line.stdout.aclose()

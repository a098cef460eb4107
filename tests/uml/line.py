"""A guest's mount of what a host end at the other end of its serial line has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from tests.support.remote.client import Remote
from tests.uml.hosts import VCONFS, HostEnd, open_host
from tests.uml.machine import Guest

#: In the guest.
MOUNTPOINT = "/run/vcon"
NAMES = [f"org.example.{letter}" for letter in "abcd"]


def file_of(name: str) -> str:
    return f"{MOUNTPOINT}/by-name/{name}"


@contextmanager
def open_mount(guest: Guest, folder: Path) -> Iterator[HostEnd]:
    """Mount a new host end's ports."""
    with open_host(folder, dict.fromkeys(NAMES, ""), guest.line) as host:
        mount = f"{' '.join(VCONFS)} mount --device stream:tty:/dev/ttyS0 -o throttle=block"
        trio.run(guest.run, f"mkdir -p {MOUNTPOINT}; {mount} {MOUNTPOINT}")
        try:
            yield host
        finally:
            trio.run(guest.run, f"! mountpoint -q {MOUNTPOINT} || umount {MOUNTPOINT}")


async def opened(remote: Remote, path: str, flags: int = os.O_RDWR) -> int:
    """Open a port, and wait until it knows of its host."""
    file = await remote.open(path, flags)
    await remote.connected(file)
    return file

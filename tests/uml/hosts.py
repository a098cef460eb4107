"""Host ends as programs: `vconfs host`, and its ports' sockets in a folder, named as they are."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

VCONFS = (sys.executable, "-m", "vconfs")
_ANNOUNCING = (sys.executable, "-m", "tests.uml.announcing")
#: The id of the port that comes and goes.
_PLUGGED = 8


class HostEnd:
    """A `vconfs host` that runs."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.folder = folder

    @property
    def device(self) -> Path:
        """The socket for front-ends of vhost-user."""
        return self.folder / "device"

    async def connect(self, name: str) -> trio.SocketStream:
        """Connect to the port with that name, and wait until it serves a client.

        Until then, what the guest sends is dropped.
        """
        stream = await trio.open_unix_socket(self.folder / name)
        while not (await self.ports())[name]["host"]:
            pass
        return stream

    async def ports(self) -> dict[str, dict[str, object]]:
        """Return what `ctl list` says of each port."""
        lines = (await self.ctl("list", "--json")).splitlines()
        return {str(port["name"]): port for port in map(json.loads, lines)}

    async def ctl(self, *words: str) -> str:
        """Control it by command."""
        command = [*VCONFS, "ctl", f"{self.folder}/control", *words]
        return (await trio.run_process(command, capture_stdout=True)).stdout.decode()

    async def plug(self, name: str) -> None:
        """Add a port, each time with the same id."""
        await self.ctl("add", f"{name}=unix:{self.folder}/{name},id={_PLUGGED}")

    async def unplug(self, name: str) -> None:
        await self.ctl("remove", name)

    async def announce(self, name: str) -> None:
        """Announce a port once more: see `announcing`."""
        await self.ctl("rename", name, name)

    async def resize(self, name: str, cols: int, rows: int) -> None:
        await self.ctl("resize", name, str(cols), str(rows))


@contextmanager
def open_host(
    folder: Path, ports: Mapping[str, str], line: socket.socket | None = None
) -> Iterator[HostEnd]:
    """Run a host end with these ports and their options.

    Its guest comes by vhost-user and speaks virtio1, or is at the other end of `line`.
    """
    listen = ["--listen", f"vhost-user:{folder}/device", "--dialect", "virtio1"]
    if line is not None:
        listen = ["--listen", "stream:stdio"]
    command = ["setpriv", "--pdeathsig", "KILL", *_ANNOUNCING]
    command += ["host", *listen, "--control", f"{folder}/control"]
    for name, options in ports.items():
        command += ["--port", f"{name}=unix:{folder}/{name}{options}"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if line is None else line.fileno(),
        stdout=None if line is None else line.fileno(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert "listening on" in said, said
            yield HostEnd(folder, process)
        finally:
            process.kill()

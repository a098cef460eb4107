"""Both ends in one program, with a control socket: `python -m tests.soak.embedded`.

The arguments are the mountpoint, the control socket, the dialect, and the ports.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import trio

from vconfs.guest.devices import join_embedded
from vconfs.guest.ports import PortManager
from vconfs.host.control_socket import serve_control
from vconfs.host.host import open_host
from vconfs.host.spec import parse_port
from vconfs.mounting import Plan, open_mount
from vconfs.system.tasks import open_background


async def main(mountpoint: str, control: str, dialect: str, *ports: str) -> None:
    manager = PortManager()
    async with (
        open_host([parse_port(port) for port in ports]) as host,
        open_background() as nursery,
        join_embedded(host, manager, dialect),
        open_mount(Plan(Path(mountpoint)), manager) as ended,
    ):
        await nursery.start(serve_control, host, control)
        await ended.wait()


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))

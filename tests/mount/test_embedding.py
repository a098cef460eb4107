"""A program that has a host end, its guest end and the mount of it, all by itself."""

from __future__ import annotations

from pathlib import Path

import trio

from vconfs.host import HostPortSpec, PortListener, PortStream, open_host
from vconfs.mounting import Plan, PortManager, join_embedded, open_mount
from vconfs.system.tasks import open_background

CONVERSE = """
    for word in one two; do
        exec 3<>"$1"; echo $word >&3; read -r said <&3; echo $said
    done
"""


async def shout(stream: PortStream) -> None:
    async for data in stream:
        await stream.send_all(data.upper())


async def test_other_programs_open_its_ports_as_files(tmp_path: Path) -> None:
    path, listener = tmp_path / "mnt", PortListener()
    path.mkdir()
    manager = PortManager()
    with trio.fail_after(20):
        async with (
            open_host([HostPortSpec(b"shout", listener)]) as host,
            join_embedded(host, manager),
            open_mount(Plan(path), manager),
            open_background() as nursery,
        ):
            nursery.start_soon(trio.serve_listeners, shout, [listener])
            command = ["bash", "-c", CONVERSE, "-", str(path / "by-name/shout")]
            done = await trio.run_process(command, capture_stdout=True)
            assert done.stdout == b"ONE\nTWO\n"
            command[-1] = "shout"  # needs a child of fork: see tests/conftest.py
            done = await trio.run_process(command, cwd=path / "by-name", capture_stdout=True)
            assert done.stdout == b"ONE\nTWO\n"

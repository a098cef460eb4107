"""511 ports on one device, with both ends in one program or in two: all are there, for little."""

from __future__ import annotations

import os
import select
from pathlib import Path

import trio

from tests.support.threads import in_thread

from .programs import Both, Program, open_both

COUNT = 511
#: What an idle port may cost each program, in KiB.
COST = 100


def sockets(folder: Path, count: int) -> list[str]:
    return [f"p{port_id}=unix:{folder}/s{port_id}" for port_id in range(count)]


def assert_cheap(few: int, many: int) -> None:
    cost = (many - few) / (COUNT - 1)
    print(f"{cost:.1f} KiB for a port")
    assert cost < COST


async def test_all_ports_are_there_and_cost_little(both: Both) -> None:
    held: list[tuple[int, int]] = []
    for count in (1, COUNT):
        host = await both.host(*sockets(both.folder, count))
        mount = await both.mount()
        await assert_all_there(both, count)
        held.append((host.resident(), mount.resident()))
        await mount.kill()
        await host.kill()
    for few, many in zip(*held, strict=True):
        assert_cheap(few, many)


async def test_both_ends_in_one_program(tmp_path: Path) -> None:
    held: list[int] = []
    async with open_both(tmp_path, "embedded") as both:
        for count in (1, COUNT):
            words = [word for port in sockets(tmp_path, count) for word in ("--port", port)]
            mount: Program = await both.mount(*words)
            await assert_all_there(both, count)
            held.append(mount.resident())
            await mount.kill()
    assert_cheap(*held)


async def assert_all_there(both: Both, count: int) -> None:
    """Check the files and names, and that the last port carries data while all are polled."""
    names = await in_thread(lambda: set(os.listdir(both.mountpoint)))
    assert names == {".events", ".tap", "by-name", *(f"vcon{port_id}" for port_id in range(count))}
    links = both.mountpoint / "by-name"
    for port_id in range(count):
        assert os.readlink(links / f"p{port_id}") == f"../vcon{port_id}"
        assert both.attribute("id", port_id) == b"%d" % port_id
    last = count - 1
    client = await trio.open_unix_socket(f"{both.folder}/s{last}")
    await both.until_connected(last)
    files = [os.open(both.file(port_id), os.O_RDWR) for port_id in range(count)]
    poll = select.poll()
    for fd in files:
        poll.register(fd, select.POLLIN)
    await client.send_all(b"for the last")
    while (files[-1], select.POLLIN) not in await in_thread(lambda: poll.poll(1000)):
        pass
    assert await in_thread(lambda: os.read(files[-1], 100)) == b"for the last"
    await in_thread(lambda: os.write(files[-1], b"from the last"))
    assert await client.receive_some(100) == b"from the last"
    for fd in files:
        os.close(fd)
    await client.aclose()

"""`vconfs mount` in a guest, on a serial line whose other end `vconfs host` has."""

from __future__ import annotations

import hashlib
import select
from contextlib import AsyncExitStack

import pytest
import trio

from tests.qemu.changes import pattern, receive_exactly
from tests.support.limits import LONG
from tests.support.remote.client import Remote
from tests.support.remote.shell import check_cat_and_echo
from tests.uml.hosts import HostEnd
from tests.uml.line import MOUNTPOINT, NAMES, file_of, opened
from tests.uml.machine import ROOT

pytestmark = pytest.mark.limit(120)

UNIT = pattern(1)[:251]
PIECE = 1 << 20
#: Bytes each way on each port.
MUCH = 8 << 20 if LONG else 1 << 20
#: Seconds for it: into the guest a serial line carries a byte per system call.
LIMIT = 240


async def test_names(remote: Remote, line_host: HostEnd) -> None:
    assert await remote.listdir(f"{MOUNTPOINT}/by-name") == NAMES
    for port_id, name in enumerate(NAMES):
        assert await remote.readlink(file_of(name)) == f"../vcon{port_id}"
        assert await remote.getxattr(f"{MOUNTPOINT}/vcon{port_id}", "name") == name.encode()


async def test_cat_and_echo(remote: Remote, line_host: HostEnd) -> None:
    path = file_of(NAMES[0])
    async with await line_host.connect(NAMES[0]) as client:
        await remote.close(await opened(remote, path))
        await check_cat_and_echo(remote, path, client)


@pytest.mark.limit(LIMIT + 60)
async def test_much_data_both_ways_on_all_ports_at_once(remote: Remote, line_host: HostEnd) -> None:
    size = MUCH

    async def to_host(client: trio.SocketStream, number: int, file: int) -> None:
        unit = UNIT[number:] + UNIT[:number]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(remote.write_repeated, file, unit, size)
            data = await receive_exactly(client, size, seconds=LIMIT)
        assert data == (unit * (size // len(unit) + 1))[:size]

    async def to_guest(client: trio.SocketStream, number: int, file: int) -> None:
        data = pattern(size + number)[number : number + size]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, data)
            for start in range(0, size, PIECE):
                digest = await remote.read_digest(file, PIECE)
                assert digest == hashlib.sha256(data[start : start + PIECE]).hexdigest()

    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for number, name in enumerate(NAMES):
            client = await stack.enter_async_context(await line_host.connect(name))
            file = await opened(remote, file_of(name))
            stack.push_async_callback(remote.close, file)
            nursery.start_soon(to_host, client, number, file)
            nursery.start_soon(to_guest, client, number, file)


async def test_a_client_that_leaves_hangs_up(remote: Remote, line_host: HostEnd) -> None:
    async with await line_host.connect(NAMES[1]) as client:
        file = await opened(remote, file_of(NAMES[1]))
        await client.send_all(b"last words")
        await remote.poll_until(file, select.POLLIN)
    await remote.connected(file, False)
    assert await remote.read(file, 100) == b"last words"
    assert await remote.read(file, 100) == b""
    async with await line_host.connect(NAMES[1]):
        await remote.connected(file)
    await remote.close(file)


async def test_a_port_comes_and_goes(remote: Remote, line_host: HostEnd) -> None:
    name = "org.example.late"
    await line_host.plug(name)
    await remote.exists_until(file_of(name))
    async with await line_host.connect(name) as client:
        file = await opened(remote, file_of(name))
        await client.send_all(b"hello")
        await remote.poll_until(file, select.POLLIN)
        assert await remote.read(file, 100) == b"hello"
        await line_host.unplug(name)
        await remote.exists_until(file_of(name), False)
        with pytest.raises(OSError, match="No such device"):
            await remote.read(file, 100)
        await remote.close(file)


async def test_links_by_name(remote: Remote, line_host: HostEnd) -> None:
    """examples/udev-links.sh, of a port that comes, gets another name, and goes."""
    first, second = "org.example.linked", "org.example.renamed"
    script = f"exec {ROOT}/examples/udev-links.sh {MOUNTPOINT} /run/links"
    await remote.run(f"setsid sh -c 'echo $$ >/run/links.pid; {script}' >/run/links.log 2>&1 &")
    await line_host.plug(first)
    await remote.exists_until(f"/run/links/{first}")
    target = await remote.readlink(f"{MOUNTPOINT}/by-name/{first}")
    assert await remote.readlink(f"/run/links/{first}") == f"{MOUNTPOINT}/{target[3:]}"
    await line_host.ctl("rename", first, second)
    await remote.exists_until(f"/run/links/{second}")
    await remote.exists_until(f"/run/links/{first}", False)
    await line_host.unplug(second)
    await remote.exists_until(f"/run/links/{second}", False)
    await remote.run("pkill -s $(cat /run/links.pid)")


async def test_a_chat(remote: Remote, line_host: HostEnd) -> None:
    """examples/chat.sh, which ends when there is nothing more to say."""
    await remote.run("mkfifo /run/typed /run/shown")
    typed, shown = await remote.open("/run/typed"), await remote.open("/run/shown")
    chat = f"CHAT_NAME=guest {ROOT}/examples/chat.sh {file_of(NAMES[0])}"
    async with await line_host.connect(NAMES[0]) as client, trio.open_nursery() as nursery:
        nursery.start_soon(remote.run, f"{chat} </run/typed >/run/shown")
        await remote.write(typed, b"hello, host\n")
        assert await receive_exactly(client, 19) == b"guest: hello, host\n"
        await client.send_all(b"host: hello, guest\n")
        await remote.poll_until(shown, select.POLLIN)
        assert await remote.read(shown, 100) == b"host: hello, guest\n"
        await remote.close(typed)
    await remote.close(shown)


async def test_the_examples_list_the_logged_in_users(remote: Remote, line_host: HostEnd) -> None:
    """examples/who.sh; a record of utmp(5) has its type at offset 0, and the user's name at 44."""
    write = "dd of=/run/utmp conv=notrunc bs=1 status=none"
    user = f"printf '\\7' | {write}; printf alice | {write} seek=44"
    await remote.run(f"truncate -s 384 /run/utmp; {user}")
    who = f"exec {ROOT}/examples/who.sh {file_of(NAMES[1])}"
    async with await line_host.connect(NAMES[1]) as client:
        await remote.close(await opened(remote, file_of(NAMES[1])))
        await remote.run(f"setsid sh -c 'echo $$ >/run/who.pid; {who}' >/run/who.log 2>&1 &")
        assert await receive_exactly(client, 6) == b"alice\n"
        await remote.run("printf '' >/run/utmp")
        assert await receive_exactly(client, 1) == b"\n"
        await remote.run("pkill -s $(cat /run/who.pid)")

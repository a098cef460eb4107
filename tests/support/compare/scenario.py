"""What a program sees of a port while its host does one thing after the other.

The same scenario is run with Linux's own driver and with ours; `record` notes what came of each
call, and `differences` compares. Neither knows where the port is: the program's side is a `Remote`,
the host's a `Host`. Some steps need our own host end: see `record_with_own_host`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import select
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio
from attrs import field, frozen

from tests.qemu.changes import pattern, receive_exactly
from tests.support.remote.client import Remote

#: (what happened, what the program asked) -> the answer.
Recording = dict[tuple[str, str], str]

#: More than all buffers on the way hold.
_MUCH = 16 << 20
_UNIT = pattern(1)[:251]
_BITS = ("POLLIN", "POLLPRI", "POLLOUT", "POLLERR", "POLLHUP", "POLLRDHUP")


class Host(Protocol):
    """The host end: it has no port yet."""

    async def plug(self, name: str) -> None:
        """Announce a port of that name, each time with the same id."""

    async def unplug(self, name: str) -> None:
        """Take it away."""

    async def connect(self, name: str) -> trio.SocketStream:
        """Connect to its chardev."""


class OwnHost(Host, Protocol):
    """Our own host end. QEMU 7.2 cannot do this: it tells no sizes, and announces a port once."""

    async def announce(self, name: str) -> None:
        """Announce a port that is there already."""

    async def resize(self, name: str, cols: int, rows: int) -> None:
        """Print the size of its console."""


#: Waits for the port of a name, and gives its file.
Find = Callable[[str], Awaitable[str]]


@frozen
class _Program:
    """A program that has a port open, and notes what it sees."""

    remote: Remote
    path: str
    file: int
    notes: Recording

    async def poll(self, step: str) -> None:
        self.notes[step, "poll"] = _mask(await self.remote.poll(self.file))

    async def read(self, step: str, size: int = 100, what: str = "read") -> None:
        self.notes[step, what] = await _outcome(lambda: self.remote.read(self.file, size))

    async def write(self, step: str, data: bytes = b"x", times: int = 1) -> None:
        write = self.remote.write
        self.notes[step, "write"] = await _outcome(lambda: write(self.file, data, times))

    async def open_again(self, step: str) -> None:
        async def call() -> str:
            await self.remote.close(await self.remote.open(self.path))
            return "well"

        self.notes[step, "open"] = await _outcome(call)

    async def until(self, wanted: int = 0, unwanted: int = 0) -> None:
        await self.remote.poll_until(self.file, wanted, unwanted)

    async def connected(self) -> None:
        await self.remote.connected(self.file)


async def _outcome(call: Callable[[], Awaitable[object]]) -> str:
    try:
        return str(await call())
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _mask(mask: int) -> str:
    return " ".join(name[4:] for name in _BITS if mask & getattr(select, name))


@frozen
class _Stage:
    """Where the scenario takes place."""

    remote: Remote
    host: Host
    find: Find
    notes: Recording = field(factory=dict)

    async def open(self, name: str) -> _Program:
        path = await self.find(name)
        return _Program(self.remote, path, await self.remote.open(path), self.notes)


async def record(remote: Remote, host: Host, find: Find, tag: str) -> Recording:
    """Run the scenario with new ports, in whose names is `tag`."""
    stage = _Stage(remote, host, find)
    name = f"org.example.compared.{tag}"
    await host.plug(name)
    program = await stage.open(name)
    await _alone(program)
    async with await host.connect(name) as stream:
        await _connected(program, stream)
        await _not_reading(program, stream)
        await stream.send_all(b"last words")
        await program.until(select.POLLIN)
    await _hung_up(program)
    await _bytes_of_two_connections(stage, name, program)
    await _hang_up_that_was_polled(stage, name, program)
    async with await host.connect(name) as stream:
        await _closing(program, stream)
        program = await stage.open(name)
        await _waiting(program, stream)
        await _unplugged(stage, name, program)
    await _announced_again(stage, f"{name}.again")
    return stage.notes


async def record_with_own_host(
    remote: Remote, host: OwnHost, find: Find, tag: str, console: tuple[str, str]
) -> Recording:
    """Run the scenario, and then the steps that only our own host end can take.

    `console` is a port that is one: its name, and its terminal.
    """
    stage = _Stage(remote, host, find, await record(remote, host, find, tag))
    await _announced_while_open(stage, host, f"{tag}.twice")
    await _resized(stage, host, *console)
    return stage.notes


async def _alone(program: _Program) -> None:
    step = "no host yet"
    await program.poll(step)
    await program.read(step)
    await program.write(step)
    await program.open_again(step)


async def _connected(program: _Program, stream: trio.SocketStream) -> None:
    await program.connected()
    await program.poll("the host connects")
    await program.read("the host connects")
    await stream.send_all(b"hello")
    await program.until(select.POLLIN)
    await program.poll("the host sends")
    await program.read("the host sends", 2)
    await program.read("the host sends", what="read the rest")
    await program.read("the host sends", what="read more")
    await program.write("the program writes", b"to the host")
    assert await receive_exactly(stream, 11) == b"to the host"
    await program.write("the program writes much", bytes(128), times=1024)
    taken = int(program.notes["the program writes much", "write"])
    assert await receive_exactly(stream, taken) == bytes(taken)


async def _not_reading(program: _Program, stream: trio.SocketStream) -> None:
    step = "the host does not read"
    sent = bytearray()
    while len(sent) < _MUCH:  # the host's side may take some meanwhile
        size = await program.remote.write_repeated(program.file, _UNIT, _MUCH)
        sent += pattern(size)[:size]
        if not size and not await program.remote.poll(program.file) & select.POLLOUT:
            break
    await program.poll(step)
    await program.write(step)
    same = await receive_exactly(stream, len(sent), seconds=30) == sent
    await program.until(select.POLLOUT)
    program.notes["the host reads all", "bytes"] = "the same" if same else "others"
    await program.poll("the host reads all")
    await program.write("the host reads all", b"more")
    assert await receive_exactly(stream, 4) == b"more"


async def _hung_up(program: _Program) -> None:
    step = "the host hangs up"
    await program.until(select.POLLHUP)
    await program.poll(step)
    await program.read(step)
    await program.poll("all is read")
    await program.read("all is read")
    await program.write("all is read")


async def _bytes_of_two_connections(stage: _Stage, name: str, program: _Program) -> None:
    async with await stage.host.connect(name) as stream:
        await program.connected()
        await program.poll("the host reconnects")
        await program.read("the host reconnects")
        await stream.send_all(b"old")
        await program.until(select.POLLIN)
    await program.until(select.POLLHUP)
    async with await stage.host.connect(name) as stream:
        step = "the host goes and comes back"
        await program.connected()
        await program.poll(step)
        await program.read(step)
        await stream.send_all(b"new")
        await program.until(select.POLLIN)
        await program.read(step, what="read more")
        if program.notes[step, "read more"] == "b''":  # it was an end of file that could be read
            await program.until(select.POLLIN)
        await program.read(step, what="read even more")
    await program.until(select.POLLHUP)


async def _hang_up_that_was_polled(stage: _Stage, name: str, program: _Program) -> None:
    """Hang up when all is read, let the program see it by polling, and come back."""
    async with await stage.host.connect(name) as stream:
        await program.connected()
        await stream.send_all(b"test")
        await program.until(select.POLLIN)
        await program.read("the host sends before it hangs up")
    await program.until(select.POLLHUP)
    async with await stage.host.connect(name):
        step = "the host comes back after a poll has shown its hang-up"
        await program.connected()
        await program.poll(step)
        await program.read(step)
    await program.until(select.POLLHUP)


async def _closing(program: _Program, stream: trio.SocketStream) -> None:
    """Close the port, whose host is there."""
    remote = program.remote
    await program.connected()
    await stream.send_all(b"unread")
    await program.until(select.POLLIN)
    await remote.close(program.file)
    file = await remote.open(program.path)
    await _Program(remote, program.path, file, program.notes).read("closed with bytes unread")
    await remote.close(file)


async def _waiting(program: _Program, stream: trio.SocketStream) -> None:
    """Wait for bytes, and for many of them."""
    await program.connected()
    await program.remote.set_blocking(program.file, True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(program.read, "a read waits")
        await stream.send_all(b"at last")
    data = pattern(1 << 20)[: 1 << 20]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        digest = await program.remote.read_digest(program.file, len(data))
    same = digest == hashlib.sha256(data).hexdigest()
    program.notes["many bytes come", "bytes"] = "the same" if same else "others"


async def _unplugged(stage: _Stage, name: str, program: _Program) -> None:
    """Take the port away from under a reader."""
    step = "the port is unplugged"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(program.read, step, 100, "read that waits")
        await stage.host.unplug(name)
    await program.poll(step)
    await program.read(step)
    await program.write(step)
    await stage.remote.exists_until(program.path, False)
    await program.open_again(step)
    await stage.remote.close(program.file)


async def _announced_again(stage: _Stage, name: str) -> None:
    step = "the port is announced again"
    await stage.host.plug(name)
    program = await stage.open(name)
    async with await stage.host.connect(name) as stream:
        await program.connected()
        await stream.send_all(b"hello")
        await program.until(select.POLLIN)
        await program.poll(step)
        await program.read(step)
        await program.write(step, os.fsencode(step))
        assert await receive_exactly(stream, len(step)) == os.fsencode(step)
    await stage.remote.close(program.file)
    await stage.host.unplug(name)
    await stage.remote.exists_until(program.path, False)


async def _announced_while_open(stage: _Stage, host: OwnHost, name: str) -> None:
    """Announce a port that is there, open, and holds data."""
    step = "an open port is announced again"
    await host.plug(name)
    program = await stage.open(name)
    async with await host.connect(name) as stream:
        await program.connected()
        await stream.send_all(b"kept")
        await program.until(select.POLLIN)
        await host.announce(name)
    await program.until(select.POLLHUP)  # the announcement came before this
    await program.poll(step)
    await program.read(step)
    await program.read(step, what="read more")
    step = "the host reconnects to it"
    async with await host.connect(name) as stream:
        await program.connected()
        await program.poll(step)
        await program.write(step, b"to the host")
        assert await receive_exactly(stream, 11) == b"to the host"
        await stream.send_all(b"hello")
        await program.until(select.POLLIN)
        await program.read(step)
    await stage.remote.close(program.file)
    await host.unplug(name)
    await stage.remote.exists_until(program.path, False)


async def _resized(stage: _Stage, host: OwnHost, name: str, terminal: str) -> None:
    """Change the size of a console under a program, which tells the host what it learns of it.

    The same size once more is no change.
    """
    step = "the console is resized"
    remote = stage.remote
    file = await remote.open(terminal, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    await remote.run(f"stty -F {terminal} raw -echo")
    await host.resize(name, 80, 25)
    await remote.run(f"until stty -F {terminal} size | grep -qx '25 80'; do :; done")
    program = f"setsid --ctty --wait {sys.executable} -m tests.support.remote.window 3"
    async with await host.connect(name) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(remote.run, f"{program} <>{terminal} >&0")
        stage.notes[step, "size"] = await _line(stream)
        await host.resize(name, 100, 30)
        stage.notes[step, "size at SIGWINCH"] = await _line(stream)
        await host.resize(name, 100, 30)
        await host.resize(name, 132, 43)
        stage.notes[step, "size at the next SIGWINCH"] = await _line(stream)
    await remote.close(file)


async def _line(stream: trio.SocketStream) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += await receive_exactly(stream, 1, seconds=30)
    return line.decode().rstrip("\n")

"""Chardevs on files and fifos."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, Self

import trio
from attrs import frozen

from vconfs.host.chardev import Chardev, ChardevError, PortSide
from vconfs.host.chardevs.join import pass_on
from vconfs.host.chardevs.paths import cannot
from vconfs.paths import path_argument
from vconfs.pipe import Pipe

#: Write so much to a file at a time: a thread does it, and has to be worth it.
_PIECE: Final = 1 << 20


@contextmanager
def _opened(path: str, how: int) -> Iterator[int]:
    how |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a fifo that nobody reads is no trap
    try:
        descriptor = os.open(path, how, 0o600)
    except OSError as error:
        raise cannot(path, error) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@frozen
class File(Chardev):
    """Appends what the guest sends to a file."""

    path: str

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the file's path."""
        return cls(path_argument("file", argument))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Append until cancelled; ChardevError also where something cannot be written."""
        with _opened(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
            port.connect()
            task_status.started()
            try:
                while True:
                    await _append(descriptor, await port.receive(_PIECE))
            except OSError as error:
                raise cannot(self.path, error) from None
            finally:
                port.disconnect()


async def _append(descriptor: int, data: bytes) -> None:
    """Write in a thread, for a slow disk must not stop the other ports."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[await trio.to_thread.run_sync(os.write, descriptor, rest) :]
        except BlockingIOError:  # a fifo, a terminal
            await trio.lowlevel.wait_writable(descriptor)


@frozen
class Fifos(Chardev):
    """Two fifos: what is written to PATH.in goes to the guest, what it sends to PATH.out."""

    path: str

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the path that both fifos' names begin with."""
        return cls(path_argument("pipe", argument, ", for PATH.in and PATH.out"))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Copy until cancelled; both fifos stay open here, so that clients come and go."""
        with ExitStack() as stack:
            source, sink = (
                Pipe(stack.enter_context(_fifo(self.path + suffix))) for suffix in (".in", ".out")
            )
            port.connect()
            stack.callback(port.disconnect)
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_copy_out, port, sink)
                while data := await source.receive():
                    await port.send(data)


@contextmanager
def _fifo(path: str) -> Iterator[int]:
    """Open a fifo, and make it for that long if there is none."""
    made = _make_fifo(path)
    try:
        with _opened(path, os.O_RDWR) as descriptor:
            yield descriptor
    finally:
        if made:
            with suppress(OSError):
                os.unlink(path)


def _make_fifo(path: str) -> bool:
    """Make a fifo; False: there is one."""
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError as error:
        try:
            mode = os.stat(path).st_mode
        except OSError:  # a link to nowhere
            raise cannot(path, error) from None
        if not stat.S_ISFIFO(mode):
            raise ChardevError(f"{path} exists and is no fifo: choose another path") from None
        return False
    except OSError as error:
        raise cannot(path, error) from None
    return True


async def _copy_out(port: PortSide, sink: Pipe) -> None:
    while True:
        await sink.writable()  # until then the data is left in the port
        await pass_on(port, sink.send)

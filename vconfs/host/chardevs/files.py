"""Chardevs on files, fifos, ptys and our own standard streams."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import trio
from attrs import define, frozen

from vconfs.host.chardev import Chardev, ChardevError, PortSide
from vconfs.host.chardevs.join import Pipe
from vconfs.ptys import open_pty

log = logging.getLogger(__name__)


@frozen
class File(Chardev):
    """Appends what the guest sends to a file."""

    path: str

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the file's path."""
        if not argument:
            raise ValueError("file needs a path: file:PATH")
        return cls(argument)

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Append until cancelled; what cannot be written (a full disk) hangs the port up."""
        with _opened(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as descriptor:
            port.connect()
            task_status.started()
            try:
                while True:
                    rest = memoryview(await port.receive())
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
            except OSError as error:
                raise ChardevError(f"{self.path}: {error.strerror}") from None


@contextmanager
def _opened(path: str, how: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, how | os.O_CLOEXEC | os.O_NOCTTY, 0o600)
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        raise ChardevError(f"{path}: the folder {folder} does not exist: make it first") from None
    except OSError as error:
        raise ChardevError(f"{path}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@frozen
class Fifos(Chardev):
    """Two fifos: what is written to PATH.in goes to the guest, what it sends to PATH.out."""

    path: str

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the path that both fifos' names begin with."""
        if not argument:
            raise ValueError("pipe needs a path: pipe:PATH, for PATH.in and PATH.out")
        return cls(argument)

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Copy until cancelled; both fifos stay open here, so that clients come and go."""
        made = [path for path in (self.path + ".in", self.path + ".out") if _make_fifo(path)]
        try:
            with (
                _opened(self.path + ".in", os.O_RDWR | os.O_NONBLOCK) as source,
                _opened(self.path + ".out", os.O_RDWR | os.O_NONBLOCK) as sink,
            ):
                port.connect()
                task_status.started()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_copy_out, port, Pipe(sink))
                    nursery.start_soon(_copy_in, port, Pipe(source))
        finally:
            for path in made:
                with suppress(OSError):
                    os.unlink(path)


def _make_fifo(path: str) -> bool:
    """Make a fifo; False: it is there."""
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            raise ChardevError(f"{path} exists and is no fifo: choose another path") from None
        return False
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        raise ChardevError(f"{path}: the folder {folder} does not exist: make it first") from None
    except OSError as error:
        raise ChardevError(f"{path}: {error.strerror}") from None
    return True


async def _copy_in(port: PortSide, source: Pipe) -> None:
    while data := await source.receive():
        await port.send(data)


async def _copy_out(port: PortSide, sink: Pipe) -> None:
    while True:
        await sink.writable()
        await sink.send_all(await port.receive())


@define
class Pty(Chardev):
    """A pty in raw mode; `path` is its slave's, and `link` a symlink to that, if one is wanted."""

    link: str = ""
    path: str = ""

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the symlink's path, which may be left out."""
        return cls(argument)

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve whoever opens the slave, one session after the other."""
        with open_pty() as pty:
            self.path = pty.path
            with _linked(self.link, self.path):
                task_status.started()
                while True:
                    await pty.wait_occupied()
                    await self._serve(port, Pipe(pty.master))

    async def _serve(self, port: PortSide, master: Pipe) -> None:
        port.connect()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_copy_out, port, master)
                with suppress(OSError):  # EIO: the last one closed the slave
                    await _copy_in(port, master)
                nursery.cancel_scope.cancel()
        finally:
            port.disconnect()


@contextmanager
def _linked(link: str, target: str) -> Iterator[None]:
    if not link:
        yield
        return
    path = Path(link)
    if path.is_symlink() and os.readlink(path).startswith("/dev/pts/"):
        path.unlink()  # of a pty that has gone, or of one that it no longer names
    try:
        path.symlink_to(target)
    except FileExistsError:
        raise ChardevError(f"{link} exists and is no link to a pty: choose another path") from None
    except OSError as error:
        raise ChardevError(f"{link}: {error.strerror}") from None
    try:
        yield
    finally:
        if path.is_symlink() and os.readlink(path) == target:
            path.unlink()


@frozen
class Stdio(Chardev):
    """Our own standard input and output; the port hangs up at the input's end."""

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take no argument."""
        if argument:
            raise ValueError(f"stdio takes no argument, not {argument!r}")
        return cls()

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Copy until standard input ends."""
        port.connect()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._print, port)
            while data := await trio.to_thread.run_sync(
                os.read, 0, 1 << 16, abandon_on_cancel=True
            ):
                await port.send(data)
            nursery.cancel_scope.cancel()

    async def _print(self, port: PortSide) -> None:
        while True:
            rest = memoryview(await port.receive())
            while rest:
                written = await trio.to_thread.run_sync(os.write, 1, rest, abandon_on_cancel=True)
                rest = rest[written:]

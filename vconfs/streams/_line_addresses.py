"""Streams that both ends open the same way: a terminal line, a program, our stdin and stdout."""

from __future__ import annotations

import errno
import os
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import ClassVar, Final, Self

from attrs import frozen

from vconfs.errors import PeerAbsentError, VconfsError
from vconfs.overrides import override
from vconfs.streams.stream_address import WINDOW_OPTION, NextGuest, StreamAddress, window_option
from vconfs.streams.wire import ProgramWire, TtyWire, Wire
from vconfs.syntax.commands import command_argument
from vconfs.syntax.paths import path_argument
from vconfs.syntax.url_options import split_options, split_trailing_options
from vconfs.system.descriptors import owned
from vconfs.system.own_mounts import refuse_own
from vconfs.system.shell_programs import start_program
from vconfs.system.standard_streams import claim, closed_streams

#: A terminal line drops what is not read in time; its buffers hold at least this many bytes.
_TTY_WINDOW: Final = 2048
#: A kernel may write to a serial line before the peer does, up to this many bytes.
_TTY_NOISE: Final = 1 << 20
_STDIN, _STDOUT, _STDERR = 0, 1, 2


class Line(StreamAddress):
    """A stream without clients that come and go: opening it is waiting for a guest."""

    @override
    @asynccontextmanager
    async def listen(self) -> AsyncIterator[NextGuest]:
        yield self.connect


@frozen(kw_only=True)
class TtyAddress(Line):
    """A terminal line, in raw mode at its own speed or another."""

    path: str
    baud: int | None  # None leaves the speed unchanged
    noise_max: ClassVar[int] = _TTY_NOISE

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Parse PATH[,baud=N][,window=N]. Raise ValueError if it is wrong."""
        rest, options = split_options("tty", rest, "baud=N", WINDOW_OPTION)
        return cls(
            path=path_argument("tty", rest),
            baud=_speed(options["baud"]) if "baud" in options else None,
            window=window_option(options, _TTY_WINDOW),
        )

    @override
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Wire]:
        try:
            refuse_own(self.path)
            line = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise PeerAbsentError(f"cannot open {self.path}: {error.strerror}") from None
        with owned(line), self._raw(line):
            yield TtyWire(line)

    @contextmanager
    def _raw(self, line: int) -> Iterator[None]:
        try:
            before = termios.tcgetattr(line)
            tty.setraw(line, termios.TCSANOW)
            mode = termios.tcgetattr(line)
            mode[2] |= termios.CLOCAL | termios.CREAD
            if self.baud is not None:
                mode[4] = mode[5] = self.baud
            termios.tcsetattr(line, termios.TCSANOW, mode)
            termios.tcflush(line, termios.TCIFLUSH)  # input from before raw mode may be garbled
        except termios.error as error:
            code, reason = error.args
            why = "it is not a terminal" if code == errno.ENOTTY else reason
            raise VconfsError(f"cannot use {self.path}: {why}") from None
        try:
            yield
        finally:
            with suppress(termios.error):
                termios.tcsetattr(line, termios.TCSANOW, before)


def _speed(text: str) -> int:
    """Return termios' code for a speed. Raise ValueError if there is none."""
    known = {name[1:]: code for name, code in vars(termios).items() if _is_speed(name)}
    if text not in known:
        speeds = ", ".join(sorted(known, key=int))
        raise ValueError(f"a tty cannot run at {text!r} baud: the speeds are {speeds}")
    speed = known[text]
    assert isinstance(speed, int)
    return speed


def _is_speed(name: str) -> bool:
    return name.startswith("B") and name[1:].isdigit() and name != "B0"


@frozen(kw_only=True)
class ExecAddress(Line):
    """The standard input and output of a shell command."""

    command: str
    starts_program: ClassVar[bool] = True

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Parse COMMAND[,window=N]. Raise ValueError if it is wrong."""
        rest, options = split_trailing_options(rest, WINDOW_OPTION)
        return cls(command=command_argument(rest), window=window_option(options))

    @override
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Wire]:
        try:
            program = await start_program(self.command)
        except OSError as error:
            raise VconfsError(f"cannot run {self.command!r}: {error.strerror}") from None
        wire = ProgramWire(program)
        try:
            yield wire
        finally:
            await wire.end()


@frozen(kw_only=True)
class StdioAddress(StreamAddress):
    """Our own standard input and output, which then carry only the protocol.

    Anything else that is written to standard output goes to standard error.
    """

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Parse [,window=N]. Raise ValueError if it is wrong."""
        rest, options = split_options("stdio", rest, WINDOW_OPTION)
        if rest:
            raise ValueError(f"stdio takes no argument, not {rest!r}")
        return cls(window=window_option(options))

    @override
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Wire]:
        _check_open()
        if os.isatty(_STDIN) or os.isatty(_STDOUT):
            raise VconfsError("standard input or output is a terminal: use tty:PATH for it")
        if trouble := claim():  # never released, since no other end can come
            raise VconfsError(f"stdio cannot be a stream: {trouble}")
        with _taken_over() as (reader, writer):
            yield Wire(reader, writer)

    @override
    @asynccontextmanager
    async def listen(self) -> AsyncIterator[NextGuest]:
        _check_open()
        guests = [self.connect]
        yield lambda: guests.pop()() if guests else nullcontext()


def _check_open() -> None:
    if closed := closed_streams():
        raise VconfsError(f"stdio cannot be a stream: {closed}")


@contextmanager
def _taken_over() -> Iterator[tuple[int, int]]:
    """Reserve our standard streams for the block, and hide them from the rest of this process."""
    reader, writer = os.dup(_STDIN), os.dup(_STDOUT)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, _STDIN)
    os.dup2(_STDERR, _STDOUT)
    os.close(null)
    blocking = os.get_blocking(reader), os.get_blocking(writer)
    try:
        yield reader, writer
    finally:
        for descriptor, before in zip((reader, writer), blocking, strict=True):
            os.set_blocking(descriptor, before)  # other processes may share it
            os.close(descriptor)

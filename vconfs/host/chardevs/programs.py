"""The exec chardev: a program for each time that the guest has the port open."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
from contextlib import suppress
from typing import Final, Self

import trio
from attrs import frozen

from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs.join import CHUNK, hang_up_scope
from vconfs.pipe import Pipe

log = logging.getLogger(__name__)

#: How long a program may go on after its input has ended, and after SIGTERM; and how long it may
#: leave its input unread when the guest has gone.
_PATIENCE: Final = 1.0


@frozen
class Exec(Chardev):
    """Runs a shell command while the guest has the port open, its input and output the port.

    When the guest closes the port, the program's input ends; a program that goes on for a second
    gets SIGTERM, and a second later SIGKILL, with all that it started. What a program leaves in
    the background when it ends by itself is left alone.
    """

    command: str
    keeps_sessions = True

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the command, as for sh -c."""
        if not argument.strip():
            raise ValueError("exec needs a command: exec:COMMAND")
        if "\0" in argument:
            raise ValueError(f"exec: a command has no NUL in it: {argument!r}")
        return cls(argument)

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the command at each open; the port is connected when it can be opened."""
        port.connect()
        task_status.started()
        try:
            await port.next_session()
            while True:
                session = _Session(port)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(session.wait_for_the_next)
                    await session.run(self.command)
        finally:
            port.disconnect()


class _Session:
    """One run of the command, from an open to the close."""

    def __init__(self, port: PortSide) -> None:
        self._port = port
        self._followed = False  # whether the guest has opened the port again
        self._all_read = False  # whether we have read up to where the guest closed the port
        self._output = trio.CancelScope()  # of the piece that is being sent

    async def wait_for_the_next(self) -> None:
        """Return when the guest has opened the port again; this run is for nobody then."""
        await self._port.next_session()
        self._followed = True
        self._output.cancel()

    async def run(self, command: str) -> None:
        """Run the command until it has ended and the guest has closed the port."""
        try:
            program = await start_program(command)
        except OSError as error:
            log.warning("port %d: cannot run %r: %s", self._port.id, command, error.strerror)
        else:
            await self._serve(program)
        if not self._all_read:
            self._port.hang_up()
            await self._read_the_rest()

    @property
    def _left(self) -> bool:
        return self._all_read or self._followed or not self._port.guest_connected

    async def _serve(self, program: Program) -> None:
        try:
            with hang_up_scope(self._port):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._feed, program)
                    await self._deliver(program)
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await program.end()

    async def _deliver(self, program: Program) -> None:
        """Send the program's output until it has ended and all of that is sent."""
        with select.epoll() as news:
            news.register(program.output.descriptor, select.EPOLLIN)
            news.register(program.descriptor, select.EPOLLIN)
            while True:
                await trio.lowlevel.wait_readable(news)
                ended = program.has_ended  # asked first, so that all it wrote is there to read
                data = _read_nowait(program.output)
                if data:
                    await self._send(data)
                elif ended:
                    return
                elif data is not None:  # it has closed its output, and goes on
                    news.unregister(program.output.descriptor)

    async def _send(self, data: bytes) -> None:
        if not self._left:  # else it is for nobody
            with trio.CancelScope() as self._output:
                await self._port.send(data)

    async def _feed(self, program: Program) -> None:
        """Give the program what the guest sends; at the guest's close its input ends, then it."""
        with suppress(OSError):  # EPIPE: it reads no more
            await self._pass_on(program.input)
        await program.close_input()
        await self._read_the_rest()
        for number in (signal.SIGTERM, signal.SIGKILL):
            await trio.sleep(_PATIENCE)
            program.force(number)

    async def _pass_on(self, stdin: Pipe) -> None:
        while await self._takes(stdin):
            rest = memoryview(await self._port.receive())
            if not rest:
                self._close()
                return
            while rest := rest[stdin.send_nowait(rest) :]:
                if not await self._takes(stdin):
                    return

    async def _takes(self, stdin: Pipe) -> bool:
        """Wait until the program takes input; False: it does not, and the guest has gone."""
        while True:
            with trio.move_on_after(_PATIENCE):
                await stdin.writable()
                return True
            if self._left:
                return False

    async def _read_the_rest(self) -> None:
        """Drop what the program did not read, up to where the guest closed the port."""
        while not self._all_read:
            if not await self._port.receive():
                self._close()

    def _close(self) -> None:
        self._all_read = True
        self._output.cancel()


def _read_nowait(pipe: Pipe) -> bytes | None:
    """Read what is there; none at end of file, None if there is nothing yet."""
    try:
        return os.read(pipe.descriptor, CHUNK)
    except BlockingIOError:
        return None


class Program:
    """A running program, which leads a session of its own.

    It is reaped by `end` alone: until then its number stays its own, and its group's.
    """

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._stdin, self._stdout = _streams(process)
        self._forced = False
        self.descriptor = os.pidfd_open(process.pid)  # readable when it has ended
        self.input = Pipe(self._stdin.fileno())
        self.output = Pipe(self._stdout.fileno())

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(0))

    async def close_input(self) -> None:
        """Let it see the end of its input."""
        await self._stdin.aclose()

    def force(self, number: int) -> None:
        """Signal it, and what it started."""
        self._forced = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def end(self) -> None:
        """See it out, gently first if it still runs."""
        await self._stdin.aclose()
        await self._stdout.aclose()
        if not self.has_ended:
            self.force(signal.SIGTERM)
            with trio.move_on_after(_PATIENCE):
                await trio.lowlevel.wait_readable(self.descriptor)
        if self._forced:
            self.force(signal.SIGKILL)
        await self._process.wait()
        os.close(self.descriptor)


def _streams(process: trio.Process) -> tuple[trio.lowlevel.FdStream, trio.lowlevel.FdStream]:
    stdin, stdout = process.stdin, process.stdout
    assert isinstance(stdin, trio.lowlevel.FdStream) and isinstance(stdout, trio.lowlevel.FdStream)
    return stdin, stdout


async def start_program(command: str) -> Program:
    """Run a shell command with pipes at both ends; OSError."""
    process = await trio.lowlevel.open_process(
        command,
        shell=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return Program(process)
    except OSError:  # no descriptor is left
        os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            for stream in _streams(process):
                await stream.aclose()
            await process.wait()
        raise

"""The exec chardev: one run of a program for each time the guest opens the port."""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from typing import Final, Self

import trio
from attrs import frozen

from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs._client import can_reopen
from vconfs.link.draining import drain
from vconfs.syntax.commands import command_argument
from vconfs.system.backoff import Backoff, is_passing
from vconfs.system.pipes import Pipe
from vconfs.system.shell_programs import Program, start_program

log: Final = logging.getLogger(__name__)

#: Seconds that a program may run on after it has read all its input, and after SIGTERM.
_PATIENCE: Final = 1.0


@frozen
class Exec(Chardev):
    """Runs a shell command while the guest has the port open; its input and output are the port.

    The command starts when a program in the guest first reads, writes or polls the port, or has had
    it open for 100 ms: a program that only opens and closes the port starts nothing.

    When the guest closes the port, or the command is hung up (`vconfs ctl PATH disconnect`), its
    input ends once it has read what the guest sent. If it reads nothing for as long as an ending
    waits (5 seconds by default), the rest is dropped, which is counted. If it still runs a second
    after that, it gets SIGTERM, and a second later SIGKILL, as do all processes that it started.
    Processes that it leaves in the background when it ends by itself are left alone.
    """

    command: str
    keeps_sessions = True
    starts_programs = True

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the command, as for `sh -c`."""
        return cls(command_argument(argument))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the command at each open of the guest; the port is always connected."""
        port.connect()
        task_status.started()
        try:
            await port.next_session()
            failure = ""
            while True:
                session = _Session(port, self.command, failure)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(session.wait_for_the_next)
                    await session.run()
                failure = session.failure
        finally:
            port.disconnect()


class _Session:
    """One run of the command, from an open to the close."""

    def __init__(self, port: PortSide, command: str, failure: str) -> None:
        self._port = port
        self._command = command
        self.failure = failure  # of the program, in this run or else in the run before
        self._followed = False  # True if the guest has opened the port again
        self._all_read = False  # True if we have read up to where the guest closed the port
        self._hung_up = False
        self._input_ended = False
        self._input = trio.CancelScope()  # around feeding the program
        self._output = trio.CancelScope()  # around sending a piece of its output

    async def wait_for_the_next(self) -> None:
        """Return when the guest has opened the port again, so that this run has no reader."""
        await self._port.next_session()
        self._followed = True
        self._output.cancel()

    async def run(self) -> None:
        """Run the command until it has ended and the guest has closed the port."""
        if program := await self._started():
            await self._serve(program)
        if not self._all_read:
            self._port.hang_up()
            await self._read_the_rest()

    async def _started(self) -> Program | None:
        """Start the command; wait if the system is only short of resources for now."""
        where = f"port {self._port.id}: "
        command = self._command
        tries = Backoff(f"{where}cannot run {command!r}", f"{where}{command!r} runs again")
        while True:
            try:
                program = await start_program(command)
            except OSError as error:
                if not is_passing(error):
                    log.warning("%scannot run %r: %s", where, command, error.strerror)
                    return None
                with can_reopen(self._port, tries.try_now):
                    await tries.failed(error)
            else:
                tries.succeeded()
                return program

    @property
    def _left(self) -> bool:
        connected = self._port.guest_connected
        return self._all_read or self._followed or self._hung_up or not connected

    def hang_up(self) -> None:
        """End the program's input, so that it ends."""
        self._hung_up = True
        self._input.cancel()
        self._output.cancel()

    def _note_failure(self, failure: str) -> None:
        if failure and failure != self.failure:  # the same failure is already in the log
            log.warning("port %d: %r %s", self._port.id, self._command, failure)
        self.failure = failure

    async def _serve(self, program: Program) -> None:
        port = self._port

        def unread() -> int:  # a program that has read all its input may still be working on it
            busy = self._input_ended and not program.has_ended
            return program.unread() or int(busy)

        try:
            port.hang_up_client, port.unread = self.hang_up, unread
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed, program)
                await self._deliver(program)
                nursery.cancel_scope.cancel()
        finally:
            port.unread = None
            with trio.CancelScope(shield=True):
                port.lost(await program.end())
            port.hang_up_client = None  # only now, so that this loss counts as the hang-up's
            self._note_failure(program.failure)

    async def _deliver(self, program: Program) -> None:
        """Send the program's output until the program has ended and all of it is sent."""
        while True:
            await program.wait()
            ended = program.has_ended  # checked first, so that all it wrote is there to read
            data = program.output.receive_nowait()
            if data:
                await self._send(data)
            elif ended:
                return
            elif data is not None:  # it has closed its output, and still runs
                await program.wait_end()

    async def _send(self, data: bytes) -> None:
        if self._left:  # no reader is left in the guest
            self._port.counters.dropped += len(data)
            return
        with trio.CancelScope() as self._output:
            await self._port.send(data)

    async def _feed(self, program: Program) -> None:
        """Feed the program what the guest sends; after the guest's close, make it end."""
        with self._input:
            with suppress(OSError):  # EPIPE: it has closed its input
                await self._pass_on(program.input)
            self._input_ended = True
            await program.close_input()
            await self._read_the_rest()
        self._input_ended = True
        await program.close_input()
        await drain(lambda: {program: program.unread()}, self._port.patience)
        for number in (signal.SIGTERM, signal.SIGKILL):
            await trio.sleep(_PATIENCE)
            program.force(number)

    async def _pass_on(self, stdin: Pipe) -> None:
        while await self._takes(stdin):
            rest = memoryview(await self._port.receive())
            if not rest:
                self._close()
                return
            try:
                while rest:
                    sent = stdin.send_nowait(rest)
                    self._port.delivered(sent)
                    rest = rest[sent:]
                    if rest and not await self._takes(stdin):
                        return
            finally:
                self._port.put_back(rest)

    async def _takes(self, stdin: Pipe) -> bool:
        """Wait until the program takes input; return False if it does not and the guest is gone."""
        while True:
            with trio.move_on_after(self._port.patience):
                await stdin.writable()
                return True
            if self._left:
                return False

    async def _read_the_rest(self) -> None:
        """Drop what the program did not read, up to where the guest closed the port."""
        while not self._all_read:
            data = await self._port.receive()
            self._port.delivered(len(data))
            self._port.lost(len(data))
            if not data:
                self._close()

    def _close(self) -> None:
        self._all_read = True
        self._output.cancel()

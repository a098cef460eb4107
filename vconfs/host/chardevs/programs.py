"""The exec chardev: a program for each time that the guest has the port open."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from typing import Final, Self

import trio
from attrs import frozen

from vconfs.host.chardev import Chardev, PortSide

#: How long a program may go on after its input has ended, and after SIGTERM.
_PATIENCE: Final = 1.0


@frozen
class Exec(Chardev):
    """Runs a shell command while the guest has the port open, its input and output the port."""

    command: str
    keeps_sessions = True

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the command, as for sh -c."""
        if not argument.strip():
            raise ValueError("exec needs a command: exec:COMMAND")
        return cls(argument)

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the command at each open; the port is connected when it can be opened."""
        port.connect()
        task_status.started()
        while True:
            await port.next_session()
            session = _Session(port)
            await session.run(self.command)
            if not session.closed:
                port.hang_up()
                await session.skip_the_rest()


class _Session:
    """One run of the command."""

    def __init__(self, port: PortSide) -> None:
        self._port = port
        self.closed = False  # whether the guest has closed the port, as far as we have read

    async def run(self, command: str) -> None:
        """Run the command until it has ended and all its output is sent."""
        process = await trio.lowlevel.open_process(
            command,
            shell=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            async with process.stdin, process.stdout, trio.open_nursery() as nursery:
                nursery.start_soon(self._feed, process)
                async for data in process.stdout:
                    if not self.closed:  # what comes later is for nobody
                        await self._port.send(data)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await _end(process)

    async def skip_the_rest(self) -> None:
        """Drop what the program did not read, up to where the guest closed the port."""
        while not self.closed:
            self.closed = not await self._port.receive()

    async def _feed(self, process: trio.Process) -> None:
        """Give the program what the guest sends; at the guest's close its input ends, then it."""
        assert process.stdin is not None
        with suppress(trio.BrokenResourceError):  # it reads no more
            while True:
                await process.stdin.wait_send_all_might_not_block()
                data = await self._port.receive()
                if not data:
                    break
                await process.stdin.send_all(data)
            self.closed = True
        await process.stdin.aclose()
        await self.skip_the_rest()
        await trio.sleep(_PATIENCE)
        _signal(process, signal.SIGTERM)
        await trio.sleep(_PATIENCE)
        _signal(process, signal.SIGKILL)


async def _end(process: trio.Process) -> None:
    """See the program out: gently, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with trio.move_on_after(_PATIENCE):
            await process.wait()
            break
        _signal(process, number)
    await process.wait()


def _signal(process: trio.Process, number: int) -> None:
    """Signal the program and its children: it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)

"""The exec chardev: a program for each time that the guest has the port open."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from contextlib import suppress
from typing import Final, Self

import trio
from attrs import frozen

from vconfs.host.chardev import Chardev, PortSide

log = logging.getLogger(__name__)

#: How long a program may go on after its input has ended, and after SIGTERM.
_PATIENCE: Final = 1.0


@frozen
class Exec(Chardev):
    """Runs a shell command while the guest has the port open, its input and output the port."""

    command: str

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
            await port.wait_guest(True)
            await self._session(port)
            port.disconnect()  # the end of file that the guest sees
            port.connect()
            await port.wait_guest(False)

    async def _session(self, port: PortSide) -> None:
        process = await trio.lowlevel.open_process(
            self.command,
            shell=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            async with process.stdin, process.stdout, trio.open_nursery() as nursery:
                nursery.start_soon(_feed, port, process.stdin)
                nursery.start_soon(_end_with_guest, port, process)
                async for data in process.stdout:
                    await port.send(data)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await _end(process)


async def _feed(port: PortSide, stdin: trio.abc.SendStream) -> None:
    with suppress(trio.BrokenResourceError):  # the program reads no more
        while True:
            await stdin.wait_send_all_might_not_block()
            await stdin.send_all(await port.receive())
    await trio.sleep_forever()


async def _end_with_guest(port: PortSide, process: trio.Process) -> None:
    """End the program when the guest closes the port."""
    await port.wait_guest(False)
    assert process.stdin is not None
    await process.stdin.aclose()
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

"""The stdio chardev."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar, Final, Self

import trio
from attrs import frozen

from vconfs.errors import VconfsError
from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs._client import CHUNK, Client, serve
from vconfs.overrides import override
from vconfs.protocol.events import Buffer
from vconfs.system.edges import wait_hang_up
from vconfs.system.standard_streams import claim, release

_STDIN: Final = 0
_STDOUT: Final = 1


@frozen
class Stdio(Chardev):
    """The daemon's own standard input and output, for one port.

    After the end of the input the output goes on, until its reader has gone.
    """

    options: ClassVar[Sequence[str] | None] = ()

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take no argument."""
        if argument:
            raise ValueError(f"stdio takes no argument, not {argument!r}")
        return cls()

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Copy until cancelled, or until the program at the streams is gone."""
        if trouble := claim():
            raise VconfsError(f"stdio cannot be joined to a port: {trouble}")
        try:
            task_status.started()
            await serve(port, _Standard())
        finally:
            release()


class _Standard(Client):
    """The program at our standard streams.

    We share them with other programs, so they stay blocking: threads read and write, when that
    should not block.
    """

    @override
    async def receive(self) -> Buffer:
        while True:
            try:
                with suppress(PermissionError):  # raised for a file, which is always ready
                    await trio.lowlevel.wait_readable(_STDIN)
                return await trio.to_thread.run_sync(os.read, _STDIN, CHUNK, abandon_on_cancel=True)
            except BlockingIOError:  # another program read first, and has made it non-blocking
                continue
            except OSError:
                return b""  # the terminal is gone, or we may not read it

    @override
    async def take_from(self, port: PortSide) -> None:
        with suppress(PermissionError):
            await trio.lowlevel.wait_writable(_STDOUT)
        rest = memoryview(await port.receive())
        try:
            while rest:
                written = await _write(rest)
                port.delivered(written)
                rest = rest[written:]
        finally:
            port.put_back(rest)

    @override
    async def gone(self) -> None:
        try:
            await wait_hang_up(_STDOUT)
        except PermissionError:  # raised for a file, which never hangs up
            await trio.sleep_forever()


async def _write(data: memoryview) -> int:
    try:
        return await trio.to_thread.run_sync(os.write, _STDOUT, data, abandon_on_cancel=True)
    except BlockingIOError:  # another program has made it non-blocking
        await trio.lowlevel.wait_writable(_STDOUT)
        return 0

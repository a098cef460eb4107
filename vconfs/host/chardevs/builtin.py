"""Chardevs that join a port to nothing outside: echo, null, zero. They need no task for data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Self

import trio

from vconfs.host.chardev import Chardev, PortSide
from vconfs.protocol.events import Buffer

_ZEROS: Final = memoryview(bytes(1 << 20))


class Builtin(Chardev):
    """A chardev without an argument."""

    options: ClassVar[Sequence[str] | None] = ()

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take no argument."""
        if argument:
            raise ValueError(f"{cls.__name__.lower()} takes no argument, not {argument!r}")
        return cls()


class Echo(Builtin):
    """Sends what the guest sends back to it."""

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Send back at once what the guest takes; queue the rest, and keep the order."""
        sending = False

        def sink(data: memoryview) -> int:
            return 0 if sending else port.send_nowait(data)

        port.sink = sink
        port.connect()
        task_status.started()
        while True:
            data = await port.receive()
            port.delivered(len(data))
            sending = True
            await port.send(data)
            sending = False


class Null(Builtin):
    """Discards what the guest sends, and sends nothing."""

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Discard data until cancelled."""
        port.sink = len
        port.connect()
        task_status.started()
        await trio.sleep_forever()


class Zero(Builtin):
    """Sends zeros without end, and discards what the guest sends."""

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Discard data and supply zeros until cancelled."""

        def source(size: int) -> Buffer:
            return _ZEROS[:size]

        port.sink, port.source = len, source
        port.connect()
        task_status.started()
        await trio.sleep_forever()

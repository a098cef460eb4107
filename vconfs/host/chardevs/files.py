"""Chardevs on files and fifos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import trio
from attrs import frozen

from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs.appending import AppendedFile, Appending
from vconfs.host.chardevs.fifos import Incoming, fifo, wait_replaced
from vconfs.host.chardevs.join import hang_up_scope, on_disconnect, pass_on, serve_anew
from vconfs.host.chardevs.paths import cannot
from vconfs.paths import path_argument
from vconfs.pipe import Pipe


@frozen
class File(Chardev):
    """Appends what the guest sends to a file.

    When the path leads to another file, or to none, as after a rotation, the path is opened anew
    before the next write; `vconfs ctl PATH disconnect PORT` does so at once.
    """

    path: str

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the file's path."""
        return cls(path_argument("file", argument))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Append until cancelled; ChardevError where the file cannot be opened at first."""
        file = AppendedFile(self.path)
        try:
            file.open()
        except OSError as error:
            raise cannot(self.path, error) from None
        appending = Appending(port, file)
        port.reopen = appending.reopen
        try:
            with on_disconnect(port, appending.reopen):
                port.connect()
                task_status.started()
                await appending.run()
        finally:
            port.reopen = None
            port.disconnect()
            file.close()


@frozen
class Fifos(Chardev):
    """Two fifos: what is written to PATH.in goes to the guest, what it sends to PATH.out.

    A fifo that is removed is made anew, and one that is put in its place is used.
    """

    path: str

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the path that both fifos' names begin with."""
        return cls(path_argument("pipe", argument, ", for PATH.in and PATH.out"))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Copy until cancelled; both fifos stay open here, so that clients come and go."""

        def ready() -> None:
            port.connect()
            task_status.started()

        try:
            await serve_anew(port, "its fifos are there again", self._serve_pair, ready)
        finally:
            port.disconnect()

    async def _serve_pair(self, port: PortSide, ready: Callable[[], None]) -> None:
        """Open the fifos and copy, until a path leads to another one; no data is left there."""
        with fifo(f"{self.path}.in") as source, fifo(f"{self.path}.out") as sink:
            ready()
            incoming, outgoing = Incoming(port, Pipe(source.descriptor)), trio.CancelScope()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(incoming.copy)
                nursery.start_soon(_copy_out, port, Pipe(sink.descriptor), outgoing)
                with hang_up_scope(port):
                    await wait_replaced(source, sink)
                incoming.end()
                outgoing.cancel()
            port.put_back(sink.take_back())


async def _copy_out(port: PortSide, sink: Pipe, scope: trio.CancelScope) -> None:
    with scope:
        while True:
            await sink.writable()  # until then the data is left in the port
            await pass_on(port, sink.send)

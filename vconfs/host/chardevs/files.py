"""Chardevs on files and fifos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar, Self

import trio
from attrs import frozen

from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.chardevs._access import ACCESS_FORMS, file_access
from vconfs.host.chardevs._appending import AppendedFile, Appending
from vconfs.host.chardevs._client import can_reopen
from vconfs.host.chardevs._fifos import Incoming, Outgoing, follow
from vconfs.syntax.paths import path_argument
from vconfs.syntax.url_options import split_options
from vconfs.system.file_access import OUR_OWN, FileAccess
from vconfs.system.path_errors import cannot
from vconfs.system.tasks import open_background


@frozen
class File(Chardev):
    """Appends what the guest sends to a file, which is made if it does not exist.

    When the path leads to another file, or to none, as after a rotation, it is opened again before
    the next write; `vconfs ctl PATH disconnect PORT` does so at once.
    """

    path: str
    access: FileAccess = OUR_OWN
    options: ClassVar[Sequence[str] | None] = ACCESS_FORMS

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the path of the file."""
        path, options = split_options("file", argument, *ACCESS_FORMS)
        return cls(path_argument("file", path), file_access(options))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Append until cancelled; raise VconfsError if the file cannot be opened at first."""
        file = AppendedFile(self.path, self.access)
        try:
            file.open()
        except OSError as error:
            raise cannot(self.path, error) from None
        appending = Appending(port, file)
        try:
            with can_reopen(port, appending.reopen):
                port.connect()
                task_status.started()
                await appending.run()
        finally:
            port.disconnect()
            file.close()


@frozen
class Fifos(Chardev):
    """Two fifos: what is written to PATH.in goes to the guest, what it sends to PATH.out.

    A fifo that is removed is made again, and one that replaces it is used.
    """

    path: str
    access: FileAccess = OUR_OWN
    options: ClassVar[Sequence[str] | None] = ACCESS_FORMS

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take the common beginning of both fifos' paths."""
        path, options = split_options("pipe", argument, *ACCESS_FORMS)
        path = path_argument("pipe", path, ", for PATH.in and PATH.out")
        return cls(path, file_access(options))

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Copy until cancelled; both fifos stay open here, so that clients come and go."""
        ways = (
            Incoming(port, f"{self.path}.in", self.access),
            Outgoing(port, f"{self.path}.out", self.access),
        )

        def reopen() -> None:
            for way in ways:
                way.reopen()

        try:
            async with open_background() as nursery:
                for way in ways:
                    await nursery.start(way.run)
                port.connect()
                with can_reopen(port, reopen):
                    task_status.started()
                    await follow(os.path.dirname(self.path) or ".", ways)
        finally:  # both ways have ended, and have put back what they had not delivered
            port.disconnect()

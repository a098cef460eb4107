"""The chardev mount: the host's side of a port as a file."""

from __future__ import annotations

import trio

from vconfs.errors import VconfsError
from vconfs.host.chardev import PortSide
from vconfs.host.chardevs.builtin import Builtin


class Mount(Builtin):
    """A file of the host end's own mount, which behaves as the files of a guest's mount do.

    Opening it connects the port, and the last close disconnects it. What the guest sends waits for
    a reader, up to the port's host limit, also while the file is not open.
    """

    keeps_all = True

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Raise VconfsError if the host end has no mount."""
        if port.as_file is None:
            raise VconfsError(
                "a port can be a file only of a host end with a mount: vconfs host --mount DIR"
            )
        await port.as_file(task_status)

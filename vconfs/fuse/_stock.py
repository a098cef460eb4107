"""The stock session of pyfuse3, for comparison with ours."""

from __future__ import annotations

import os

import pyfuse3
import trio


class StockSession:
    """A server of a mount like `Session`, by pyfuse3.main(), where a signal does not end a read."""

    def __init__(self, operations: pyfuse3.Operations, device: int) -> None:
        self._operations = operations
        self._device = device

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until unmounted."""
        os.set_blocking(self._device, True)
        pyfuse3.init(self._operations, f"/dev/fd/{os.dup(self._device)}")
        try:
            task_status.started()
            await pyfuse3.main()
        finally:
            pyfuse3.close(unmount=False)

    async def settle(self) -> None:
        """Let requests be answered that can be answered now."""
        await trio.lowlevel.checkpoint()

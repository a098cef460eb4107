"""The stock session, to compare ours with."""

from __future__ import annotations

import os

import pyfuse3
import trio


class StockSession:
    """Serves a mount like `Session`, by pyfuse3.main(): no signal ends a read then."""

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
        """Let the requests that can be answered now be answered."""
        await trio.sleep(0)

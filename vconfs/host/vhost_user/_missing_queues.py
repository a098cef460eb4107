"""A warning for a driver that gives up because its device has too few queues.

A hypervisor is told how many queues its device has. With too few of them, the guest's driver reads
how many ports there may be, fails to set up their queues, and leaves. A front-end says nothing of
this. What we see is a front-end that has named its queues, reads the config space for the driver,
and then starts no ring.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from vconfs.host.vhost_user._device import VhostUserDevice
from vconfs.protocol import vhost_user as vu

log: Final = logging.getLogger(__name__)

#: Seconds that a driver has from reading the config space to its first ring.
PATIENCE: Final = 3.0


class MissingQueues:
    """Watches one front-end; `has_driver` returns True if a driver has started rings."""

    def __init__(
        self, device: VhostUserDevice, protocol: vu.Backend, has_driver: Callable[[], bool]
    ) -> None:
        self._device = device
        self._protocol = protocol
        self._has_driver = has_driver
        self._read = trio.Event()

    def config_read(self) -> None:
        """Note that the config space was read: a driver may be about to start."""
        self._read.set()

    async def run(self) -> None:
        """Warn, once per front-end."""
        while True:
            await self._read.wait()
            await trio.sleep(PATIENCE)
            self._read = trio.Event()
            named = self._protocol.queues_named
            if 0 < named < self._protocol.queues and not self._has_driver():
                return self._warn(named)

    def _warn(self, named: int) -> None:
        needed, ports = self._protocol.queues, named // 2 - 1
        way_out = f"set it to {needed}"
        if ports >= max(self._device.host.port_count, 1):
            way_out += f", or listen with max-ports={ports}"
        log.warning(
            "a driver left without its queues: the front-end has %d (num_vqs in QEMU), and the "
            "driver needs %d: %s",
            named,
            needed,
            way_out,
        )

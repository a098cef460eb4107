"""Both ends in one process, and a puppet, for tests of vconfs and of programs that embed it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import trio
from attrs import frozen

from vconfs.guest.devices import join_embedded
from vconfs.guest.driver import Driver
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.host.chardev import Chardev, PortSide
from vconfs.host.host import Host, open_host
from vconfs.host.port import HostPortSpec

__all__ = ["Ends", "Puppet", "open_ends"]


class Puppet(Chardev):
    """A chardev that does nothing by itself: the test drives its `port`."""

    port: PortSide

    def __init__(self, *, connected: bool = True) -> None:
        self._connected = connected

    @classmethod
    def parse(cls, argument: str) -> Self:
        """Take no argument."""
        return cls()

    async def run(
        self, port: PortSide, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Make `port` available to the test."""
        self.port = port
        if self._connected:
            port.connect()
        task_status.started()
        await trio.sleep_forever()


@frozen
class Ends:
    """Both ends, connected."""

    host: Host
    manager: PortManager
    driver: Driver

    @property
    def ports(self) -> dict[int, Port]:
        """The guest end's ports."""
        return self.manager.ports


@asynccontextmanager
async def open_ends(
    specs: Sequence[HostPortSpec],
    options: PortOptions | None = None,
    dialect: str = "v8",
) -> AsyncIterator[Ends]:
    """Run a host end with these ports, and a guest end connected to it over real rings."""
    manager = PortManager(lambda port_id: options or PortOptions())
    async with open_host(specs) as host, join_embedded(host, manager, dialect) as driver:
        yield Ends(host, manager, driver)

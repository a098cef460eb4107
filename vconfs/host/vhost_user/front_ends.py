"""Serving guests behind vhost-user front-ends: hypervisors, or vconfs mount.

One front-end at a time is served; the next one waits until it has left, or was turned away for
breaking a rule (see protocol/vhost_user.py). Before that, several can say their hello at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from vconfs.errors import VconfsError
from vconfs.host._reception import GREETED_MAX, Reception, receive_guests
from vconfs.host.host import Host
from vconfs.host.vhost_user._device import VhostUserDevice
from vconfs.host.vhost_user._session import FrontendSession
from vconfs.host.vhost_user.address import VhostUserAddress
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.system.aside import ASIDE
from vconfs.system.listening import Door
from vconfs.system.log_once import LogOnce
from vconfs.system.unix_sockets import closing

log: Final = logging.getLogger(__name__)

DEFAULT_DIALECT: Final = "v8"


async def serve_vhost_user(
    host: Host,
    rest: str,
    dialect: str | None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the front-ends that connect on `vhost-user:REST`, one after the other.

    Raise ValueError if `rest` is not valid, VconfsError if it is impossible to listen there or the
    id of a port is too large for the dialect.
    """
    address = VhostUserAddress.parse(rest)
    device = VhostUserDevice(host, dialect or DEFAULT_DIALECT, address, f"vhost-user:{rest}")
    device.check_ports()
    async with address.unix.listening() as listeners:
        with Door(listeners) as door:
            task_status.started()
            await _serve_all(device, door)


async def _serve_all(device: VhostUserDevice, door: Door) -> None:
    reception, trouble = Reception(), LogOnce(log)

    async def accept() -> trio.socket.SocketType:
        await door.wait()
        await ASIDE.room()  # after the wait for a peer: there may be no room any more
        return await door.accept()

    async def serve_one() -> bool:
        with closing(await reception.let_in(accept)) as sock:
            if reason := await _serve(device, sock, reception):
                trouble.warning(reason, "front-end turned away: %s", reason)
        return True

    await receive_guests(serve_one, GREETED_MAX)


@asynccontextmanager
async def _turn(host: Host, reception: Reception) -> AsyncIterator[None]:
    """Wait until this front-end is the guest; another listener may serve the same one."""
    async with reception.as_guest(), host.turn.taken(patience=math.inf):
        yield


async def _serve(
    device: VhostUserDevice, sock: trio.socket.SocketType, reception: Reception
) -> str:
    """Serve a front-end until it leaves; return why it was turned away, or an empty string."""
    try:
        with FrontendSession(device, sock) as session:
            await session.run(_turn(device.host, reception))
    except (RemoteProtocolError, VconfsError) as error:
        return str(error)
    except OSError as error:  # for example, no descriptor is left; the next one may work
        return f"we cannot serve it: {error.strerror}"
    return ""

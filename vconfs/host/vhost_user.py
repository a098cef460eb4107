"""Guests behind vhost-user front-ends: hypervisors, or vconfs mount.

One front-end at a time is served; the next one waits until it has left, or was turned away for
what it did (see protocol/vhost_user.py).
"""

from __future__ import annotations

import logging
import re
from typing import Final, Self

import trio
from attrs import frozen

from vconfs.host.chardev import ChardevError
from vconfs.host.chardevs.listeners import Door
from vconfs.host.chardevs.sockets import Unix
from vconfs.host.host import Host, HostError
from vconfs.host.vhost_user_device import Device
from vconfs.host.vhost_user_session import Session
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.vhost_user import QUEUES_MAX
from vconfs.protocol.virtio1 import MAX_PORTS
from vconfs.url_options import resize_rows_first

log = logging.getLogger(__name__)

DEFAULT_DIALECT: Final = "v8"
#: Each port of the standard's dialect has two queues, and control messages two.
_MAX_PORTS_LIMIT: Final = QUEUES_MAX // 2 - 1


@frozen
class VhostUserAddress:
    """Where front-ends come, and what they are offered.

    PATH[,max-ports=N][,inband][,resize=rows-first]
    """

    unix: Unix
    #: Ids are smaller than this, in the standard's dialect.
    max_ports: int = MAX_PORTS
    #: Notify by messages instead of descriptors: some simulations need their strict order.
    inband: bool = False
    #: Tell console sizes in the order that Linux reads, in the standard's dialect.
    resize_rows_first: bool = False

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Read what stands after the scheme; ValueError."""
        inband, max_ports, rows_first = False, MAX_PORTS, False
        pattern = "(.*),(?:(inband)|(max-ports|resize)=([^,]*))"
        while found := re.fullmatch(pattern, rest, re.DOTALL):
            rest = found[1]
            if found[2]:
                inband = True
            elif found[3] == "resize":
                rows_first = resize_rows_first({"resize": found[4]})
            else:
                max_ports = _read_max_ports(found[4])
        return cls(Unix.parse(rest), max_ports, inband, rows_first)


def _read_max_ports(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 0 < int(text) <= _MAX_PORTS_LIMIT:
        raise ValueError(f"max-ports is 1 to {_MAX_PORTS_LIMIT}, not {text!r}")
    return int(text)


async def serve_vhost_user(
    host: Host,
    rest: str,
    dialect: str | None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the front-ends that come on `vhost-user:REST`, one after the other.

    ValueError: `rest` makes no sense; HostError: nobody can listen there, or the dialect has no
    room for a port.
    """
    address = VhostUserAddress.parse(rest)
    device = Device(
        host,
        dialect or DEFAULT_DIALECT,
        address.max_ports,
        inband=address.inband,
        resize_rows_first=address.resize_rows_first,
    )
    device.check_ports()
    try:
        async with address.unix.listening() as listeners:
            with Door(listeners) as door:
                task_status.started()
                await _serve_all(device, door)
    except ChardevError as error:
        raise HostError(str(error)) from None


async def _serve_all(device: Device, door: Door) -> None:
    said = ""
    while True:
        with await door.accept() as sock:
            try:
                with Session(device, sock) as session:
                    await session.run()
                said = ""
            except RemoteProtocolError as error:
                if str(error) != said:
                    log.warning("front-end turned away: %s", error)
                said = str(error)

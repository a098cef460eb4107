"""The address where vhost-user front-ends connect, and the options of what they are offered."""

from __future__ import annotations

import re
from typing import Final, Self

from attrs import frozen

from vconfs.host.chardevs.sockets import Unix
from vconfs.protocol.vhost_user import QUEUES_MAX
from vconfs.protocol.virtio1 import MAX_PORTS
from vconfs.syntax.paths import socket_path
from vconfs.syntax.url_options import resize_rows_first

#: In the standard's dialect each port has two queues, and so have control messages.
_MAX_PORTS_LIMIT: Final = QUEUES_MAX // 2 - 1
_LAST_OPTION: Final = re.compile(
    "(.*),(?:(inband|require-seals)|(max-ports|resize)=([^,]*))", re.DOTALL
)


@frozen
class VhostUserAddress:
    """PATH[,max-ports=N][,inband][,require-seals][,resize=rows-first]."""

    unix: Unix
    #: Port ids are smaller than this, in the standard's dialect.
    max_ports: int = MAX_PORTS
    #: Offer notifications by message instead of descriptor; some simulations need their order.
    inband: bool = False
    #: Take only memory that cannot shrink while it is in use.
    require_seals: bool = False
    #: Send console sizes in the order that Linux reads, in the standard's dialect.
    resize_rows_first: bool = False

    @classmethod
    def parse(cls, rest: str) -> Self:
        """Parse the url after the scheme; raise ValueError if it is wrong."""
        options: dict[str, str] = {}
        while found := _LAST_OPTION.fullmatch(rest):
            rest, flag, name, value = found.groups()
            if (flag or name) in options:
                raise ValueError(f"{flag or name} is given twice")
            options[flag or name] = value
        max_ports = _read_max_ports(options.get("max-ports", str(MAX_PORTS)))
        return cls(
            Unix(socket_path("vhost-user", rest), rights=True),
            max_ports,
            "inband" in options,
            "require-seals" in options,
            resize_rows_first(options),
        )


def _read_max_ports(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 0 < int(text) <= _MAX_PORTS_LIMIT:
        raise ValueError(f"max-ports is 1 to {_MAX_PORTS_LIMIT}, not {text!r}")
    return int(text)

"""The address where vhost-user front-ends connect, and the options of what they are offered."""

from __future__ import annotations

from typing import Final, Self

from attrs import frozen

from vconfs.host.chardevs.sockets import Unix
from vconfs.protocol.vhost_user import QUEUES_MAX
from vconfs.protocol.virtio1 import MAX_PORTS
from vconfs.syntax.paths import socket_path
from vconfs.syntax.url_options import RESIZE_OPTION, resize_rows_first, split_options
from vconfs.syntax.values import number

#: In the standard's dialect each port has two queues, and so have control messages.
_MAX_PORTS_LIMIT: Final = QUEUES_MAX // 2 - 1
#: The options, as they are written.
VHOST_USER_OPTIONS: Final = ("max-ports=N", "inband", "require-seals", RESIZE_OPTION)


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
        path, options = split_options("vhost-user", rest, *VHOST_USER_OPTIONS)
        max_ports = options.get("max-ports", str(MAX_PORTS))
        return cls(
            Unix(socket_path("vhost-user", path), rights=True, access=None),
            number("max-ports", max_ports, 1, _MAX_PORTS_LIMIT),
            "inband" in options,
            "require-seals" in options,
            resize_rows_first(options),
        )

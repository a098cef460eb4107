"""The guest end: ports, the driver that connects them to a device, and the table of devices.

    manager = PortManager()
    async with parse_device("stream:unix:/run/vcon.sock").open(manager):
        port = manager.by_name(b"org.example.chat")

A `PortManager` holds the ports. `parse_device(url).open(manager)` connects them to a device, and
`join_embedded(host, manager)` to a host end in the same process. `Connection` keeps a connection
up: it opens the device again whenever it is lost.
"""

from vconfs.guest.connection import Connection
from vconfs.guest.devices import Device, Joint, join_embedded, parse_device
from vconfs.guest.opener import Opener
from vconfs.guest.options import PortOptions
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager

__all__ = [
    "Connection",
    "Device",
    "Joint",
    "Opener",
    "Port",
    "PortManager",
    "PortOptions",
    "join_embedded",
    "parse_device",
]

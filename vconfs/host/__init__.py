"""The host end: ports joined to chardevs, and a Python API to embed it in a trio program.

    async with open_host([parse_port("log=file:/var/log/guest")]) as host:
        chat = PortListener()
        await host.add(HostPortSpec(b"org.example.chat", chat))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, [chat])
            await parse_listener("stream:unix:/run/vcon.sock").serve(host)

`open_host` holds the ports. Each has a far side, a `Chardev`: one of the chardevs of `vconfs host`
(`parse_port`, `parse_chardev`), a `PortListener`, which gives the program a trio stream each time
the guest opens the port, or a class of your own. The methods of `Host` add, change and remove
ports at any time.

A guest connects where `parse_listener(url).serve(host)` listens, or is in the same process:
`vconfs.mounting` joins the ports of a `PortManager` to the host end and shows them as files. The
ports of a `Host` are those of one guest, which has one connection at a time. `open_fleet` has
several guests:

    async with open_fleet(Template(["chat=unix:/run/vconfs/%g/chat"])) as fleet:
        await fleet.add(GuestSpec("db1", [parse_port("log=file:/var/log/db1")]))
        await fleet.listen(parse_listener("stream:unix:/run/vconfs/any.sock,guest=*"))

A guest that connects there says its name. `fleet.guests` are the `Host`s by name.
`serve_control(host, path)` adds a socket for `vconfs ctl`, for a `Host` or a `Fleet`.
"""

from vconfs.errors import VconfsError
from vconfs.host._port_streams import PortListener, PortStream
from vconfs.host.chardev import Chardev, PortSide, parse_chardev
from vconfs.host.control_socket import serve_control
from vconfs.host.fleet import Fleet, GuestSpec, Limits, Template, open_fleet
from vconfs.host.host import Host, open_host
from vconfs.host.listeners import Listener, parse_listener
from vconfs.host.port import HostPort, HostPortSpec
from vconfs.host.spec import parse_port

__all__ = [
    "Chardev",
    "Fleet",
    "GuestSpec",
    "Host",
    "HostPort",
    "HostPortSpec",
    "Limits",
    "Listener",
    "PortListener",
    "PortSide",
    "PortStream",
    "Template",
    "VconfsError",
    "open_fleet",
    "open_host",
    "parse_chardev",
    "parse_listener",
    "parse_port",
    "serve_control",
]

"""The host's side of ports as `Port`s, so that a mount can show them as it shows a guest's.

A `Port` is one side of a port as programs use it: its openers, their reads and writes, and what the
other side does. Here the other side is the guest. `Guests` has the ports of each guest, wherever
the guests come from: of a host end (`host_guests`), a `HostSide` plays the part of the driver and
joins the `Port` to the `HostPort` that serves the guest; of hypervisors (`sockets`), a `SocketLine`
joins it to the socket that the hypervisor made.
"""

"""The status of ports and of the mount as text, for extended attributes and `vconfs ls`.

The names without "user." in front are the keys of `vconfs ls --json`. Of the host's side of a port
(a mount with guests), guest and host are swapped in the names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final

from vconfs.files.names import CONNECTED_ATTRIBUTE, GUESTS_ATTRIBUTE, PID_ATTRIBUTE

if TYPE_CHECKING:  # commands that only look at a mount start faster without trio
    from vconfs.guest.port import Port
    from vconfs.guest.ports import PortManager
    from vconfs.mirror.guests import Guest, Guests

#: The most openers that are listed.
_OPENERS_MAX: Final = 16


def _flag(value: bool) -> bytes:
    return b"1" if value else b"0"


def _number(value: int) -> bytes:
    return b"%d" % value


def _openers(port: Port) -> bytes:
    first = islice(port.openers, _OPENERS_MAX)
    named = b", ".join((b"%d %s" % (opener.pid, opener.command)).rstrip() for opener in first)
    more = len(port.openers) - _OPENERS_MAX
    return named + b" and %d more" % more if more > 0 else named


def _dropped_by_host(port: Port) -> bytes | None:
    count = port.dropped_by_host()
    return None if count is None else _number(count)


#: Attribute -> a function that returns its value, or None if the port does not have it now.
STATUS: dict[bytes, Callable[[Port], bytes | None]] = {
    b"name": lambda port: port.name or None,
    b"user.name": lambda port: port.name or None,
    b"user.id": lambda port: _number(port.id),
    b"user.console": lambda port: _flag(port.console),
    b"user.host": lambda port: _flag(port.host_connected),
    b"user.openers": _openers,
    b"user.throttled": lambda port: _flag(port.host_throttled),
    b"user.guest_throttled": lambda port: _flag(port.guest_throttled),
    b"user.queued": lambda port: _number(port.queued),
    b"user.limit": lambda port: _number(port.limit),
    b"user.cache": lambda port: _flag(port.cache),
    b"user.bytes_in": lambda port: _number(port.counters.bytes_in),
    b"user.bytes_out": lambda port: _number(port.counters.bytes_out),
    b"user.dropped": lambda port: _number(port.counters.dropped),
    b"user.host_dropped": _dropped_by_host,
    b"user.ignored": lambda port: _number(port.counters.ignored),
    b"user.resets": lambda port: _number(port.counters.resets),
    b"user.pty": lambda port: port.pty.encode() or None,
}

#: The names at a guest's side → those at the host's side, where they are others.
_AT_HOST: Final = {
    b"user.host": b"user.guest",
    b"user.guest_throttled": b"user.host_throttled",
}
#: The same as STATUS for the host's side of a port.
HOST_STATUS: Final = {
    _AT_HOST.get(name, name): value
    for name, value in STATUS.items()
    if name not in (b"user.host_dropped", b"user.pty")
}

#: All attributes of a port at once, as JSON. It is not listed: it would be in `getfattr -d` twice.
WHOLE_STATUS: Final = b"user.status"

MEANINGS: Mapping[bytes, str] = {
    b"name": "the port's name; a port without one has no such attribute",
    b"user.name": "the same, for `getfattr -d`, which shows only `user.*`",
    b"user.id": "its number",
    b"user.console": "1 if the host says that it is a console",
    b"user.host": "1 while a host is connected",
    b"user.openers": "processes that have it open: pid and command of each, of the first 16 only",
    b"user.throttled": "1 while the host wants no more data",
    b"user.guest_throttled": "1 while the guest wants no more data: the host is asked to stop",
    b"user.queued": "bytes that came from the host and are unread",
    b"user.limit": "unread bytes at which the host is asked to stop",
    b"user.cache": "1 if unread bytes survive the last close",
    b"user.bytes_in": "bytes that came from the host",
    b"user.bytes_out": "bytes that were sent to the host",
    b"user.dropped": "bytes that were dropped at this end, by [rules](dropped.md)",
    b"user.host_dropped": "the same at the host end, if it is in the same process (embedded)",
    b"user.ignored": "messages of the host that made no sense for the port",
    b"user.resets": "how often the host went on sending after it had seen that it was to stop",
    b"user.pty": "path of the pty beside the port, if it has one",
    WHOLE_STATUS: "all of these, as one object of JSON with texts; it is not listed",
}


#: The same for the mount's root.
ROOT_STATUS: dict[bytes, Callable[[PortManager], bytes]] = {
    PID_ATTRIBUTE: lambda manager: _number(os.getpid()),
    b"user.ignored": lambda manager: _number(manager.ignored),
}

ROOT_MEANINGS: Mapping[bytes, str] = {
    PID_ATTRIBUTE: "of the mount's root: the process that serves it",
    b"user.ignored": "of the mount's root: messages of the host for no port, or that made no sense",
}


#: The same for the root of a mount with a folder for each guest, and for the folder of a guest.
GUESTS_STATUS: dict[bytes, Callable[[Guests], bytes]] = {
    PID_ATTRIBUTE: lambda guests: _number(os.getpid()),
    GUESTS_ATTRIBUTE: lambda guests: _number(len(guests.by_name)),
}

GUEST_STATUS: dict[bytes, Callable[[Guest], bytes | None]] = {
    PID_ATTRIBUTE: lambda guest: _number(os.getpid()),
    CONNECTED_ATTRIBUTE: lambda guest: _flag(guest.connected),
    b"user.since": lambda guest: b"%.3f" % guest.since,
    b"user.address": lambda guest: guest.address.encode(errors="surrogateescape") or None,
}

GUEST_MEANINGS: Mapping[bytes, str] = {
    PID_ATTRIBUTE: "the process that serves the mount",
    CONNECTED_ATTRIBUTE: "1 while the guest is connected, or a hypervisor has sockets for it",
    b"user.since": "when it connected or was lost, in seconds since 1970",
    b"user.address": "where it is connected, or was last; none before its first connection. Of a "
    "hypervisor's guest: the folder of its sockets",
}


def _status(port: Port) -> Mapping[bytes, Callable[[Port], bytes | None]]:
    return HOST_STATUS if port.guest else STATUS


def status_value(port: Port, name: bytes) -> bytes | None:
    """Return an attribute of a port, or None if the port does not have it."""
    if name == WHOLE_STATUS:
        return _whole_status(port)
    status = _status(port)
    return status[name](port) if name in status else None


def _whole_status(port: Port) -> bytes:
    texts = {
        name.decode().removeprefix("user."): value.decode(errors="backslashreplace")
        for name, read in _status(port).items()
        if (value := read(port)) is not None
    }
    return json.dumps(texts).encode()


def status_names(port: Port) -> list[bytes]:
    """Return the names of the attributes that the port has now."""
    return [name for name, value in _status(port).items() if value(port) is not None]

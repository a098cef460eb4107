"""A port's status as text: what its extended attributes say, and `vconfs ls` shows.

The names without "user." in front are the keys of `vconfs ls --json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands that only look at a mount start sooner without trio
    from vconfs.port import Port


def _flag(value: bool) -> bytes:
    return b"1" if value else b"0"


def _number(value: int) -> bytes:
    return b"%d" % value


def _openers(port: Port) -> bytes:
    return b", ".join(_describe_process(opener.pid) for opener in port.openers)


def _describe_process(thread: int) -> bytes:
    """Name the process of a thread: "PID COMMAND"; only the number when it has ended."""
    try:
        status = Path(f"/proc/{thread}/status").read_bytes()
    except OSError:
        return b"%d" % thread
    fields = dict(line.split(b":\t", 1) for line in status.splitlines() if b":\t" in line)
    pid = int(fields.get(b"Tgid", b"%d" % thread))
    try:
        command = Path(f"/proc/{pid}/comm").read_bytes().strip()
    except OSError:
        command = fields.get(b"Name", b"")
    return b"%d %s" % (pid, command)


def _dropped_by_host(port: Port) -> bytes | None:
    count = port.dropped_by_host()
    return None if count is None else _number(count)


#: Attribute -> its value; None: the port has no such attribute now.
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
    b"user.pty": lambda port: port.pty.encode() or None,
}

MEANINGS: Mapping[bytes, str] = {
    b"name": "the port's name; a port without one has no such attribute",
    b"user.name": "the same, for `getfattr -d`, which shows only `user.*`",
    b"user.id": "its number",
    b"user.console": "1 if the host says that it is a console",
    b"user.host": "1 while a host is connected",
    b"user.openers": "who has it open: number and command of each process",
    b"user.throttled": "1 while the host wants no more data",
    b"user.guest_throttled": "1 while the host is asked to send no more",
    b"user.queued": "bytes that came and nobody has read yet",
    b"user.limit": "bytes of that kind at which the host is asked to stop",
    b"user.cache": "1 if what is unread outlives the last close",
    b"user.bytes_in": "bytes that came from the host",
    b"user.bytes_out": "bytes that were sent to the host",
    b"user.dropped": "bytes that were dropped at this end, by [rules](dropped.md)",
    b"user.host_dropped": "the same of the host end, if that is in the same process (embedded)",
    b"user.pty": "path of the pty beside the port, if it has one",
}


def status_value(port: Port, name: bytes) -> bytes | None:
    """Give one attribute of a port; None: it has no such one."""
    return STATUS[name](port) if name in STATUS else None


def status_values(port: Port) -> dict[bytes, bytes]:
    """Give every attribute that the port has now."""
    values = ((name, value(port)) for name, value in STATUS.items())
    return {name: value for name, value in values if value is not None}

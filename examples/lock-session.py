#!/usr/bin/env python3
"""Locks the session when the viewer at a port leaves: the next viewer may be a stranger.

    guest:  lock-session.py /mnt/vcon org.example.viewer [SESSION]
    host:   the viewer keeps its end of the port open, as in: socat - UNIX-CONNECT:/run/viewer.sock

The viewer sends nothing; only its hang-up, its crash or the loss of its port matters. The script
asks logind, over the system bus, to lock SESSION or, if none is named, all of them. It needs
jeepney (python3-jeepney), and the right to lock: root has it, and each session has it for itself.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

try:
    from jeepney import DBusAddress, DBusErrorResponse, new_method_call
    from jeepney.io.blocking import open_dbus_connection
    from jeepney.wrappers import unwrap_msg
except ModuleNotFoundError as error:
    sys.exit(f"lock-session.py: {error}: install python3-jeepney")

_LOGIND = DBusAddress(
    "/org/freedesktop/login1", "org.freedesktop.login1", "org.freedesktop.login1.Manager"
)
_TIMEOUT = 10


def lock(session: str | None) -> None:
    """Ask logind to lock a session, or all. Raise DBusErrorResponse or OSError if that fails."""
    call = (
        new_method_call(_LOGIND, "LockSession", "s", (session,))
        if session
        else new_method_call(_LOGIND, "LockSessions")
    )
    with open_dbus_connection("SYSTEM") as bus:
        unwrap_msg(bus.send_and_get_reply(call, timeout=_TIMEOUT))


def departures(events: Iterable[str], name: str) -> Iterator[str]:
    """Yield the event each time that the host of the port with this name leaves."""
    there = False
    with suppress(OSError):  # the mount was ended by force
        for line in events:
            event = json.loads(line)
            if name not in (event.get("name"), event.get("port")):
                continue
            was_there, there = there, event["host"] and event["event"] != "remove"
            if was_there and not there:
                yield event["event"]
    if there:
        yield "end of the mount"


def guard(events: Iterable[str], name: str, session: str | None) -> None:
    """Lock at each departure, until the events end."""
    for what in departures(events, name):
        try:
            lock(session)
            print(f"{name}: {what}: locked", flush=True)
        except (OSError, DBusErrorResponse) as error:
            print(f"{name}: {what}: cannot lock: {error}", file=sys.stderr)


def main() -> None:
    """Guard one port, until the mount ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: lock-session.py MOUNTPOINT PORT [SESSION]")
    mountpoint, name, session = [*sys.argv[1:], None][:3]
    try:
        with open(f"{mountpoint}/.events") as events:
            guard(events, str(name), session)
    except OSError as error:  # also when it is closed after an end by force
        sys.exit(f"{mountpoint}/.events: {error.strerror}")


if __name__ == "__main__":
    main()

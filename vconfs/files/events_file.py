"""The events of the ports as a file of lines: MOUNTPOINT/.events.

Each opener first gets a line for each port that is there ("present"), then "ready", and from then
on a line for each event. A line is one JSON object:

    {"time": 1760000000.5, "event": "connect", "port": "vcon1", "id": 1, "name": "org.example",
     "host": true, "open": false, "throttled": false, "guest_throttled": false, "console": false}

The flags are the port's state after the event; "time" is in seconds since 1970. The events:

    add remove               the port was added or removed
    name                     its name has changed, to "name"
    connect disconnect       the host opened its side, or hung up
    open close               the first program opened the port, or the last one closed it, even if
                             it did nothing with the port
    throttle unthrottle      the host wants no more data, or wants it again
    guest-throttle guest-unthrottle
                             the guest wants no more data, or wants it again
    console                  the host says that the port is a console
    dropped                  "count" bytes were dropped by rule, "by" the "guest" or the "host" end
                             (the host's are only known if it is in the same process); at once,
                             then once a second, and the rest with the next other event
    present ready            the state when the file was opened
    lost                     this opener reads too slowly: "count" events are missing here

Reads wait for a line, unless with O_NONBLOCK, and poll reports one. The end of the mount is the
end of the file. Up to 256 openers at a time are served; a further open fails with ENFILE.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, evolve, frozen

from vconfs.files.lines_reader import LinesReader
from vconfs.files.names import port_file
from vconfs.guest.opener import Opener
from vconfs.guest.port import Port
from vconfs.guest.ports import PortManager
from vconfs.protocol.lines import LineBacklog

#: The most bytes of lines that wait for one opener; events beyond that are counted as lost.
_BACKLOG: Final = 1 << 18
#: Seconds between two events about dropped bytes of a port to which nothing else happens.
_LOSSES_PAUSE: Final = 1.0
#: The most openers at a time: each can have a backlog.
_READERS_MAX: Final = 256


@frozen
class _State:
    """The flags of a port in the events: each change of one is an event."""

    host: bool
    open: bool
    throttled: bool
    guest_throttled: bool
    console: bool


#: Flag -> the events when it becomes true and when it becomes false.
EVENTS: Final = {
    "host": ("connect", "disconnect"),
    "open": ("open", "close"),
    "throttled": ("throttle", "unthrottle"),
    "guest_throttled": ("guest-throttle", "guest-unthrottle"),
    "console": ("console", "console"),
}


@define
class _Losses:
    """The dropped bytes of a port, by end, that were reported, and when (monotonic clock)."""

    guest: int
    host: int
    time: float = -math.inf


def _losses(port: Port) -> _Losses:
    return _Losses(port.counters.dropped, port.dropped_by_host() or 0)


def _state(port: Port) -> _State:
    return _State(
        host=port.host_connected,
        open=bool(port.openers),
        throttled=port.host_throttled,
        guest_throttled=port.guest_throttled,
        console=port.console,
    )


def _line(event: str, **more: object) -> bytes:
    fields = {"time": round(time.time(), 6), "event": event, **more}
    return json.dumps(fields).encode() + b"\n"


def _port_line(event: str, port: Port, state: _State, **more: object) -> bytes:
    name = port.name.decode(errors="backslashreplace")
    flags = {flag: getattr(state, flag) for flag in EVENTS}
    return _line(event, port=port_file(port.id).decode(), id=port.id, name=name, **flags, **more)


class EventsBacklog(LineBacklog):
    """The lines that wait for one opener; those that are too many are counted as lost."""

    def lost_line(self, lines: int, weight: int) -> bytes:
        """Return the line that says how many events are missing."""
        return _line("lost", count=lines)


class EventsFile:
    """The file; an observer of the manager."""

    def __init__(self, manager: PortManager) -> None:
        self._manager = manager
        self._readers: dict[Opener, LinesReader] = {}
        self._states: dict[Port, _State] = {}
        #: This includes removed ports that are still open: their unread data will be dropped.
        self._losses: dict[Port, _Losses] = {}

    def open(
        self, opener: Opener, flags: int, on_change: Callable[[LinesReader], None]
    ) -> LinesReader:
        """Open the file; raise EACCES unless read-only, ENFILE if there are too many openers."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        if len(self._readers) >= _READERS_MAX:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        lines = EventsBacklog(_BACKLOG)
        rest = deque(sorted(self._manager.ports.items()))
        while rest:
            _, port = rest.popleft()
            if not lines.put(_port_line("present", port, _state(port))):
                break
        for _ in rest:
            lines.lose(0)
        lines.put(_line("ready"))
        reader = self._readers[opener] = LinesReader(on_change, lines, self._closed)
        return reader

    def shut(self) -> None:
        """End the file for all openers, because the mount ends."""
        for reader in list(self._readers.values()):
            reader.end()

    def _closed(self, opener: Opener) -> None:
        del self._readers[opener]

    # --- called by the manager ------------------------------------------------------------

    def port_added(self, port: Port) -> None:
        """Report a new port."""
        state = self._states[port] = _state(port)
        self._losses[port] = _losses(port)
        self._tell("add", port, state)

    def port_removed(self, port: Port) -> None:
        """Report that the port is gone; this implies that it hung up and was closed."""
        state = self._states.pop(port, None)
        if state is not None:
            self._tell("remove", port, evolve(state, host=False))
        if not port.openers:
            self._losses.pop(port, None)

    def port_renamed(self, port: Port, old: bytes) -> None:
        """Report a new name."""
        self._tell("name", port, self._states.get(port) or _state(port))

    def port_changed(self, port: Port) -> None:
        """Report each flag that has changed, and dropped bytes."""
        old = self._states.get(port)
        new = _state(port)
        self._tell_losses(port, at_once=old != new)
        if old is None or old == new or port.removed:
            return
        self._states[port] = new
        for flag, (begins, ends) in EVENTS.items():
            if getattr(new, flag) != getattr(old, flag):
                self._tell(begins if getattr(new, flag) else ends, port, new)

    def _tell_losses(self, port: Port, *, at_once: bool) -> None:
        """Report the bytes dropped since the last report: now if `at_once`, else after a pause.

        Without the pause, a long stream could cause a report for each piece.
        """
        told = self._losses.get(port)
        if told is None:
            return
        new = _losses(port)
        if (new.guest, new.host) != (told.guest, told.host):
            new.time = time.monotonic()
            if at_once or new.time - told.time >= _LOSSES_PAUSE:
                self._losses[port] = new
                for by, count in (
                    ("guest", new.guest - told.guest),
                    ("host", new.host - told.host),
                ):
                    if count > 0:
                        self._tell("dropped", port, _state(port), count=count, by=by)
        if port.removed and not port.openers:
            del self._losses[port]

    def _tell(self, event: str, port: Port, state: _State, **more: object) -> None:
        if self._readers:
            line = _port_line(event, port, state, **more)
            for reader in list(self._readers.values()):
                if reader.lines.put(line):
                    reader.wake()

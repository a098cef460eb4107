"""The events of the ports as a file of lines: MOUNTPOINT/.events.

Each opener first gets a line for each port that is there ("present"), then "ready", and from then
on a line for each event. A line is one JSON object:

    {"time": 1760000000.5, "event": "connect", "port": "vcon1", "id": 1, "name": "org.example",
     "host": true, "open": false, "throttled": false, "guest_throttled": false, "console": false}

The flags are the port's state after the event; "time" is in seconds since 1970. In the events of
the host's side of ports, guest and host are swapped in the flags and below, and "guest_name" says
whose port it is. The events:

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
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from attrs import define, frozen

from vconfs.files.lines_reader import LinesReader
from vconfs.files.names import port_file
from vconfs.guest.opener import Opener
from vconfs.guest.port import Port, PortFlags
from vconfs.guest.ports import PortManager
from vconfs.mirror.guests import Guest, Guests
from vconfs.overrides import override
from vconfs.protocol.lines import LineBacklog

#: The most bytes of lines that wait for one opener; events beyond that are counted as lost.
_BACKLOG: Final = 1 << 18
#: Seconds between two events about dropped bytes of a port to which nothing else happens.
_LOSSES_PAUSE: Final = 1.0
#: The most openers at a time: each can have a backlog.
_READERS_MAX: Final = 256


@frozen
class Words:
    """What the flags are called at one side of a port, and which end is at that side."""

    end: str
    #: A field of PortFlags -> its name in the events, and the events when it becomes true and when
    #: it becomes false.
    flags: Mapping[str, tuple[str, str, str]]


def _words(end: str, peer: str) -> Words:
    flags = {
        "peer": (peer, "connect", "disconnect"),
        "open": ("open", "open", "close"),
        "throttled": ("throttled", "throttle", "unthrottle"),
        "throttles": (f"{end}_throttled", f"{end}-throttle", f"{end}-unthrottle"),
        "console": ("console", "console", "console"),
    }
    return Words(end, flags)


GUEST_WORDS: Final = _words("guest", "host")
HOST_WORDS: Final = _words("host", "guest")
#: Flag of a guest's port -> the events when it becomes true and when it becomes false.
EVENTS: Final = {flag: events for flag, *events in GUEST_WORDS.flags.values()}


@define
class _Losses:
    """The dropped bytes of a port that were reported, and when (monotonic clock)."""

    here: int
    at_peer: int
    time: float = -math.inf


def _dropped(port: Port) -> tuple[int, int]:
    """Return how many bytes of a port were dropped at this end, and at its peer."""
    return port.counters.dropped, port.dropped_by_host() or 0


def _line(event: str, **more: object) -> bytes:
    fields = {"time": round(time.time(), 6), "event": event, **more}
    return json.dumps(fields).encode() + b"\n"


def _port_line(event: str, port: Port, state: PortFlags, **more: object) -> bytes:
    name = port.name.decode(errors="backslashreplace")
    flags = {flag: getattr(state, key) for key, (flag, *_) in _words_of(port).flags.items()}
    guest = {"guest_name": port.guest} if port.guest else {}
    file = port_file(port.id).decode()
    return _line(event, **guest, port=file, id=port.id, name=name, **flags, **more)


def _words_of(port: Port) -> Words:
    return HOST_WORDS if port.guest else GUEST_WORDS


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
        self._states: dict[Port, PortFlags] = {}
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
        rest = self._present()
        for make_line in rest:
            if not lines.put(make_line()):
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

    def _present(self) -> Iterator[Callable[[], bytes]]:
        """Yield for each line about what is there what makes it."""
        yield from present_ports(self._manager)

    def _closed(self, opener: Opener) -> None:
        del self._readers[opener]

    # --- called by the manager ------------------------------------------------------------

    def port_added(self, port: Port) -> None:
        """Report a new port."""
        state = self._states[port] = port.flags
        self._losses[port] = _Losses(*_dropped(port))
        self._tell("add", port, state)

    def port_removed(self, port: Port) -> None:
        """Report that the port is gone; this implies that it hung up and was closed."""
        state = self._states.pop(port, None)
        if state is not None:
            self._tell("remove", port, state._replace(peer=False))
        if not port.openers:
            self._losses.pop(port, None)

    def port_renamed(self, port: Port, old: bytes) -> None:
        """Report a new name."""
        self._tell("name", port, self._states.get(port) or port.flags)

    def port_changed(self, port: Port) -> None:
        """Report each flag that has changed, and dropped bytes."""
        old, new = self._states.get(port), port.flags
        self._tell_losses(port, at_once=old != new)
        if old is None or old == new or port.removed:
            return
        self._states[port] = new
        for key, (_, begins, ends) in _words_of(port).flags.items():
            if getattr(new, key) != getattr(old, key):
                self._tell(begins if getattr(new, key) else ends, port, new)

    def _tell_losses(self, port: Port, *, at_once: bool) -> None:
        """Report the bytes dropped since the last report: now if `at_once`, else after a pause.

        Without the pause, a long stream could cause a report for each piece.
        """
        told = self._losses.get(port)
        if told is None:
            return
        here, at_peer = _dropped(port)
        if here != told.here or at_peer != told.at_peer:
            now = time.monotonic()
            if at_once or now - told.time >= _LOSSES_PAUSE:
                self._losses[port] = _Losses(here, at_peer, now)
                for by, count in (
                    (_words_of(port).end, here - told.here),
                    ("host", at_peer - told.at_peer),
                ):
                    if count > 0:
                        self._tell("dropped", port, port.flags, count=count, by=by)
        if port.removed and not port.openers:
            del self._losses[port]

    def _tell(self, event: str, port: Port, state: PortFlags, **more: object) -> None:
        if self._readers:
            self._put(_port_line(event, port, state, **more))

    def _put(self, line: bytes) -> None:
        for reader in list(self._readers.values()):
            if reader.lines.put(line):
                reader.wake()


def present_ports(manager: PortManager) -> Iterator[Callable[[], bytes]]:
    """Yield for each port that is there what makes its line."""
    for _, port in sorted(manager.ports.items()):
        yield partial(_present_line, port)


def _present_line(port: Port) -> bytes:
    return _port_line("present", port, port.flags)


class GuestsEventsFile(EventsFile):
    """The file of the events of all guests, in the root of their mount.

    It has the events of their ports, and "guest-add", "guest-remove", "guest-connect" and
    "guest-disconnect", with "guest_name", "connected" and "address". Each guest that is there when
    the file is opened comes as "guest-present".
    """

    def __init__(self, guests: Guests) -> None:
        super().__init__(PortManager())
        self._guests = guests

    @override
    def _present(self) -> Iterator[Callable[[], bytes]]:
        for guest in list(self._guests.by_name.values()):
            yield partial(_guest_line, "guest-present", guest)
            yield from present_ports(guest.manager)

    def guest_added(self, guest: Guest) -> None:
        """Report a new guest."""
        self._put(_guest_line("guest-add", guest))

    def guest_removed(self, guest: Guest) -> None:
        """Report that the guest is gone."""
        self._put(_guest_line("guest-remove", guest))

    def guest_changed(self, guest: Guest) -> None:
        """Report that the guest has connected, or was lost."""
        self._put(_guest_line("guest-connect" if guest.connected else "guest-disconnect", guest))


def _guest_line(event: str, guest: Guest) -> bytes:
    return _line(event, guest_name=guest.name, connected=guest.connected, address=guest.address)

"""What a tap shows of ports: records, a line of JSON each.

    {"time_ns": 1760000000500000000, "event": "out", "id": 1, "name": "chat", "data": "aGVsbG8="}

"time_ns" is in nanoseconds since 1970. "id" and "name" are the port's; a byte of the name that is
not UTF-8 is a lone surrogate (Python's surrogateescape). The events:

    in out           "data", in base64, came to this end of the port, or was sent by it; in several
                     records if it is more than 65536 bytes
    open close       at the guest end, the program "program" with the process id "pid" opened the
                     port or closed it; at the host end, the guest did
    connect disconnect
                     at the guest end, the host opened its side or hung up; at the host end, the
                     far side did
    add remove       the port was added or removed
    present          the port is there when the tap begins; "connected" is true if a `connect` came
                     before
    lost             the reader of the tap was too slow: "records" with "bytes" of data in all are
                     missing here. It has no "id" and no "name"

What is recorded is in the order in which it was sent or came at this end: an answer stands behind
its question. Data that came is recorded whether or not any program reads it.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer
from vconfs.protocol.lines import LineBacklog

#: The events that can have data, and the others that a tap's user can ask for.
DATA_EVENTS: Final = ("in", "out")
EVENTS: Final = (
    *DATA_EVENTS,
    *("open", "close", "connect", "disconnect", "add", "remove", "present"),
)
#: The most bytes of data in a record. Wireshark reads packets of up to 256 KiB.
DATA_MAX: Final = 1 << 16
#: The longest line, with room for fields that are added later.
LINE_MAX: Final = 1 << 18
#: Numbers are below this, which is in the year 2262.
_NUMBER_END: Final = 1 << 63
#: The most bytes of lines that wait for one tapper, and the most tappers of one end.
BACKLOG: Final = 4 << 20
TAPPERS_MAX: Final = 16
#: The longest selection of ports that a program can write, in bytes.
SELECTION_MAX: Final = 1 << 16


@frozen
class Record:
    """One thing that happened on a port."""

    time_ns: int
    event: str
    id: int | None = None
    name: bytes = b""
    data: bytes = b""
    #: The fields that only some events have.
    more: Mapping[str, Any] = field(factory=dict[str, Any])

    @property
    def summary(self) -> str:
        """The event in words, for people; the text may need escapes."""
        more = self.more
        match self.event:
            case "lost":
                records, size = more.get("records"), more.get("bytes")
                return f"lost {records} records with {size} bytes: they were not read in time"
            case "open" | "close" if "program" in more:
                return f"{self.event} by {more['program']} (pid {more.get('pid')})"
            case "present":
                return f"present, {'' if more.get('connected') else 'not '}connected"
        return self.event


def encode(record: Record) -> bytes:
    """Return the line of a record, with its end."""
    fields: dict[str, object] = {"time_ns": record.time_ns, "event": record.event}
    if record.id is not None:
        fields["id"] = record.id
        fields["name"] = record.name.decode(errors="surrogateescape")
    line = json.dumps(fields | dict(record.more)).encode()
    if record.event in DATA_EVENTS:  # by hand: to look for what needs escapes takes long
        line = b'%b, "data": "%b"}' % (line[:-1], b64encode(record.data))
    return line + b"\n"


def parse(line: bytes) -> Record:
    """Parse a line without its end. Raise RemoteProtocolError if it is not one of a tap."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    match value:
        case {"time_ns": int(time_ns), "event": str(event), **rest}:
            port_id, name, data = (rest.pop(key, None) for key in ("id", "name", "data"))
            more = {str(key): value for key, value in rest.items()}
            if (
                0 <= time_ns < _NUMBER_END
                and isinstance(port_id, int | None)
                and isinstance(name, str | None)
                and (event != "lost" or _are_counts(more.get("records"), more.get("bytes")))
            ):
                return Record(time_ns, event, port_id, _name(name), _data(data), more)
    raise RemoteProtocolError("this line is not a record of a tap")


def _are_counts(*values: object) -> bool:
    return all(type(value) is int and 0 <= value < _NUMBER_END for value in values)


def _name(text: str | None) -> bytes:
    try:
        return (text or "").encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise RemoteProtocolError("the name in a record is not one of bytes") from None


def _data(text: object) -> bytes:
    try:
        return b64decode(str(text or ""), validate=True)
    except (Base64Error, ValueError):
        raise RemoteProtocolError("the data in a record is not base64") from None


def pieces(data: Buffer) -> Iterator[bytes]:
    """Yield copies of the parts of `data` that have a record each."""
    view = memoryview(data)
    for start in range(0, len(view), DATA_MAX):
        yield bytes(view[start : start + DATA_MAX])


def encode_selection(ids: Sequence[int]) -> bytes:
    """Return what a program writes to tap only the ports with these ids."""
    return " ".join(map(str, ids)).encode() + b"\n"


def parse_selection(data: Buffer) -> frozenset[int]:
    """Parse the ids of ports, separated by white space. Raise ValueError if they are none."""
    words = bytes(data).split()
    if len(data) > SELECTION_MAX or not words or not all(map(_is_id, words)):
        raise ValueError("these are not the ids of ports")
    return frozenset(map(int, words))


def _is_id(word: bytes) -> bool:
    return word.isdigit() and len(word) <= 10


class TapBacklog(LineBacklog):
    """The records that wait for one reader; those that are too many are counted as lost."""

    def __init__(self, most: int = BACKLOG) -> None:
        super().__init__(most)
        self._time_ns = 0

    def has_room(self, record: Record) -> bool:
        """True if there may be space for a record; to know needs its line."""
        return self._size + len(record.data) * 4 // 3 < self._most  # base64

    def lose_record(self, record: Record) -> None:
        """Count a record as lost."""
        self._time_ns = record.time_ns
        self.lose(len(record.data))

    def put_record(self, record: Record, line: bytes) -> bool:
        """Queue a record, whose line this is; return False if it is lost."""
        self._time_ns = record.time_ns
        return self.put(line, len(record.data))

    def lost_line(self, lines: int, weight: int) -> bytes:
        """Return the record of what is missing; its time is that of the last record."""
        return encode(Record(self._time_ns, "lost", more={"records": lines, "bytes": weight}))

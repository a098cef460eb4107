"""The control protocol of a host end: what `vconfs ctl` and other programs send to its socket.

Theory of operation
-------------------
Both sides send lines of JSON in UTF-8, one object each; `control.schema.json` beside this file
describes them. The host first sends a greeting with its protocol's version. Then every line of the
client is a request, which gets one line of reply, in order:

    host    {"vconfs-control": 1}
    client  {"op": "add", "spec": "chat=unix:/run/chat.sock"}
    host    {"ok": true, "ports": [{"id": 1, "name": "chat", …}]}
    client  {"op": "rename", "port": "chat", "name": "talk"}
    host    {"ok": true, "ports": [{"id": 1, "name": "talk", …}]}
    client  {"op": "remove", "port": 7}
    host    {"ok": false, "error": "there is no port 7"}

"ports" are the ports that the request was about, in their new state: all of them for list, none
for remove. A port is addressed by its id, a number, or by its name, a string, which only one port
may have. A host end may have several guests, each with ports of its own: then "guest" in a request
is the name of one, and "guest_name" of each port says whose it is. Without it, list is about all of
them, and the others are about the only one. The requests guest-list, guest-add and guest-remove are
about the guests themselves, and their replies have "guests" in place of "ports":

    client  {"op": "guest-add", "name": "web1"}
    host    {"ok": true, "guests": [{"name": "web1", "connected": false, …}]}
    client  {"op": "remove", "guest": "web1", "port": "chat"}
    host    {"ok": true, "ports": []}

Names are bytes: those that are not UTF-8 are lone surrogates (Python's surrogateescape).

tap begins something that does not end: after its reply, the host sends a record for each thing that
passes through the ports, in the form of tap.py, until the client leaves. Nothing that the client
sends meanwhile is read as a request.

A line that makes no sense gets an error, and the connection goes on. A line of more than LINE_MAX
bytes gets an error, and ends the connection.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from attrs import asdict, field, fields, frozen

from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.v8 import LIMIT_MAX

VERSION: Final = 1
#: The longest line of a client, in bytes.
LINE_MAX: Final = 1 << 16


@frozen
class _OfPorts:
    """The base of requests about ports."""

    #: The name of the guest whose ports they are; None for all of them, or for the only one.
    guest: str | None = field(default=None, kw_only=True)


@frozen
class List(_OfPorts):
    """List every port."""


@frozen
class Add(_OfPorts):
    """Add a port; `spec` has the form of --port of `vconfs host`."""

    spec: str


@frozen
class Remove(_OfPorts):
    """Remove a port."""

    port: int | str


@frozen
class Rename(_OfPorts):
    """Rename a port."""

    port: int | str
    name: str


@frozen
class Throttle(_OfPorts):
    """Stop taking data from the guest on a port, or resume."""

    port: int | str
    on: bool


@frozen
class Limit(_OfPorts):
    """Set how many MiB of unread data the guest may hold for a port (v8 only)."""

    port: int | str
    mib: int


@frozen
class Cache(_OfPorts):
    """Keep unread data after a close of a port, or drop it."""

    port: int | str
    on: bool


@frozen
class Resize(_OfPorts):
    """Set the size of the console on a port, in characters."""

    port: int | str
    cols: int
    rows: int


@frozen
class Disconnect(_OfPorts):
    """Hang up the client at the far side of a port, or reopen its file."""

    port: int | str


@frozen
class Tap(_OfPorts):
    """Show what passes through these ports from now on; if there are none here, through all."""

    ports: Sequence[int | str]


@frozen
class GuestList:
    """List every guest."""


@frozen
class GuestAdd:
    """Add a guest of the template."""

    name: str


@frozen
class GuestRemove:
    """Remove a guest and its ports."""

    name: str


PortRequest: TypeAlias = (
    List | Add | Remove | Rename | Throttle | Limit | Cache | Resize | Disconnect
)
GuestRequest: TypeAlias = GuestList | GuestAdd | GuestRemove
#: The requests that end with their reply.
Command: TypeAlias = PortRequest | GuestRequest
Request: TypeAlias = Command | Tap

REQUESTS: Final[Mapping[str, type[Request]]] = {
    "list": List,
    "add": Add,
    "remove": Remove,
    "rename": Rename,
    "throttle": Throttle,
    "limit": Limit,
    "cache": Cache,
    "resize": Resize,
    "disconnect": Disconnect,
    "tap": Tap,
    "guest-list": GuestList,
    "guest-add": GuestAdd,
    "guest-remove": GuestRemove,
}
_OPS: Final = {kind: op for op, kind in REQUESTS.items()}

# --- fields of requests -------------------------------------------------------------------


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_number(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_address(value: object) -> bool:
    return type(value) is int or _is_text(value)


def _are_addresses(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_address, value))


_SIZE: Final = (_is_number(0, 65535), "a number from 0 to 65535")
_TEXT: Final = (_is_text, "a string")
#: Field → a predicate for its values, and a description of them.
_FIELDS: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "spec": _TEXT,
    "name": _TEXT,
    "guest": _TEXT,
    "port": (_is_address, "an id or a name"),
    "ports": (_are_addresses, "a list of ids and names"),
    "on": (lambda value: isinstance(value, bool), "true or false"),
    "mib": (_is_number(1, LIMIT_MAX), f"a number from 1 to {LIMIT_MAX}"),
    "cols": _SIZE,
    "rows": _SIZE,
}

# --- lines --------------------------------------------------------------------------------


def encode_greeting() -> bytes:
    """Return the first line of the host."""
    return _line({"vconfs-control": VERSION})


def encode_request(request: Request) -> bytes:
    """Return the line of a request."""
    values = asdict(request)
    guest = values.pop("guest", None)
    of_guest = {} if guest is None else {"guest": guest}
    return _line({"op": _OPS[type(request)], **values, **of_guest})


def encode_ports(ports: Sequence[Mapping[str, object]]) -> bytes:
    """Return the line of a reply to a request that succeeded."""
    return _line({"ok": True, "ports": ports})


def encode_guests(guests: Sequence[Mapping[str, object]]) -> bytes:
    """Return the line of a reply to a request about guests that succeeded."""
    return _line({"ok": True, "guests": guests})


def encode_error(message: str) -> bytes:
    """Return the line of a reply to a request that failed."""
    return _line({"ok": False, "error": message})


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def parse_request(line: bytes) -> Request:
    """Parse a line of a client. Raise RemoteProtocolError with what is wrong with it."""
    value = _parse_object(line)
    op = value.pop("op", None)
    kind = REQUESTS.get(op) if isinstance(op, str) else None
    if kind is None:
        raise RemoteProtocolError(f"op is {_shown(op)}: it is one of {', '.join(REQUESTS)}")
    wanted = [it.name for it in fields(kind)]
    if unknown := sorted(value.keys() - set(wanted)):
        raise RemoteProtocolError(f"{op} has no {_shown(unknown[0])}")
    for name in wanted:
        fits, what = _FIELDS[name]
        if name not in value and name == "guest":
            continue
        if name not in value:
            raise RemoteProtocolError(f"{op} needs {name}, {what}")
        if not fits(value[name]):
            raise RemoteProtocolError(f"{name} is {what}, not {_shown(value[name])}")
    return kind(**value)


def parse_greeting(line: bytes) -> int:
    """Return the version in the host's first line. Raise RemoteProtocolError if there is none."""
    version = _parse_object(line).get("vconfs-control")
    if type(version) is not int:
        raise RemoteProtocolError("this line is not a greeting")
    return version


def parse_reply(line: bytes) -> list[dict[str, Any]] | str:
    """Return the ports, the guests or the error message of a reply.

    Raise RemoteProtocolError if the line is not a reply.
    """
    match _parse_object(line):
        case {"ok": True, "ports": list(them)} | {"ok": True, "guests": list(them)} if all(
            isinstance(one, dict) for one in them
        ):
            return them
        case {"ok": False, "error": str(error)}:
            return error
    raise RemoteProtocolError("this line is not a reply")


def _parse_object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        raise RemoteProtocolError("this line is not UTF-8") from None
    except (ValueError, RecursionError):
        raise RemoteProtocolError("this line is not JSON") from None
    if not isinstance(value, dict):
        raise RemoteProtocolError("this line is not a JSON object")
    return value


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "…"

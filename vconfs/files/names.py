"""Names in the mount: vconNN for a port's id, and a file name for a port's name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

#: The file of events, in the mount's root.
EVENTS_FILE: Final = b".events"
#: The file of what passes through the ports, in the mount's root.
TAP_FILE: Final = b".tap"
#: The folder of links by name.
BY_NAME_DIR: Final = b"by-name"
#: An attribute of the mount's root: the process that serves it.
PID_ATTRIBUTE: Final = b"user.pid"
#: An attribute of the root of a mount with a folder for each guest: how many guests there are.
GUESTS_ATTRIBUTE: Final = b"user.guests"
#: An attribute of the folder of a guest: 1 while the guest is connected.
CONNECTED_ATTRIBUTE: Final = b"user.connected"


class Place(NamedTuple):
    """A folder of the mount: its inode, and its path from the mount's root."""

    inode: int
    path: bytes


_PORT_FILE = re.compile(rb"vcon(0|[1-9][0-9]{0,9})")
_PTY_LINK = re.compile(rb"hvc(0|[1-9][0-9]{0,9})")
_FILE_NAME_MAX = 255
#: What stands before the digits of a name that is cut; no encoded byte begins like this.
_CUT = b"%~"
_DIGITS = 16
#: Bytes that a file name cannot have, and the byte that marks an encoded one.
_ENCODED = re.compile(rb"[/\0%]")


def port_file(port_id: int) -> bytes:
    """Return the name of a port's file."""
    return b"vcon%d" % port_id


def id_of_file(file: bytes) -> int | None:
    """Return the id of the port that a file belongs to, or None if it is not a port's file."""
    match = _PORT_FILE.fullmatch(file)
    return int(match[1]) if match else None


def is_pty_link(file: bytes) -> bool:
    """True if a file name can be that of a link to a console's pty."""
    return _PTY_LINK.fullmatch(file) is not None


def link_name(name: bytes) -> bytes | None:
    """Return the file name for a port's name, or None if the name is empty.

    "/", NUL and "%" are written %2F, %00 and %25, and the dots of "." and ".." %2E. A name that
    is longer than 255 bytes then is cut, and ends with "%~" and 16 digits of its SHA-256. So two
    names never get one link, and a link never leaves its folder.
    """
    if not name:
        return None
    encoded = name
    if _ENCODED.search(name):
        encoded = _ENCODED.sub(lambda match: b"%%%02X" % match[0][0], name)
    if encoded in (b".", b".."):
        encoded = encoded.replace(b".", b"%2E")
    if len(encoded) <= _FILE_NAME_MAX:
        return encoded
    mark = _CUT + hashlib.sha256(name).hexdigest()[:_DIGITS].encode()
    return encoded[: _FILE_NAME_MAX - len(mark)] + mark


def is_cut(link: bytes) -> bool:
    """True if a link is that of a name that is cut, and does not tell the whole name."""
    return link[-_DIGITS - len(_CUT) :].startswith(_CUT)


def named_by(link: bytes, cut: Callable[[bytes], bytes | None]) -> bytes | None:
    """Return the port's name for a link, or None if no name has this link.

    `cut` returns the name for a link that is cut, or None.
    """
    if is_cut(link):
        return cut(link)
    name = unquote_to_bytes(link)
    return name if link_name(name) == link else None

"""The mount table of this process, /proc/self/mountinfo.

    36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue

The kernel escapes space, tab, newline and backslash in the fields, and nothing else: a place can
contain any other byte, also a carriage return or what Unicode regards as a space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

#: The file, which can also be watched for changes (POLLPRI).
MOUNTINFO: Final = Path("/proc/self/mountinfo")

_LINE: Final = re.compile(rb"[^ ]+ [^ ]+ ([^ ]+) [^ ]+ ([^ ]+) [^ ]+ (?:[^ ]+ )*?- ([^ ]+) ")
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


class Mounted(NamedTuple):
    """A mounted file system: its device number like "0:42", its place, and its type."""

    number: str
    place: bytes
    type: str


def read_mounts() -> list[Mounted]:
    """Return what is mounted now, at each place the topmost last."""
    return list(parse_mounts(MOUNTINFO.read_bytes()))


def parse_mounts(text: bytes) -> Iterator[Mounted]:
    """Yield what the lines of a mount table describe. Skip lines of another form."""
    for line in text.split(b"\n"):
        if found := _LINE.match(line):
            number, place, kind = found.groups()
            yield Mounted(_text(number), _ESCAPED.sub(_unescaped, place), _text(kind))


def _unescaped(found: re.Match[bytes]) -> bytes:
    return bytes([int(found[1], 8) & 0xFF])


def _text(field: bytes) -> str:
    return field.decode(errors="surrogateescape")

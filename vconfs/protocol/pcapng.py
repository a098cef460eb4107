"""The records of a tap as a pcapng file, for Wireshark and tshark.

Theory of operation
-------------------
The format is that of draft-ietf-opsawg-pcapng: blocks of 32-bit words, here little-endian, each
with its type and its length at the beginning and its length again at the end. A Section Header
comes first. Each port is an interface, whose Interface Description stands before its first packet:
"if_name" is the port's name, or vconN if it has none. A port that gets another name becomes another
interface. The link type is LINKTYPE_USER0, which Wireshark lets its user assign to a protocol.

A record with data is an Enhanced Packet, whose flags say whether it is inbound (`in`) or outbound
(`out`). Any other record is a packet without data, with the event as its comment. Records that were
lost are a packet of the interface "tap", with their number as "epb_dropcount".
"""

from __future__ import annotations

import struct
from typing import Final

from vconfs.protocol.tap import Record
from vconfs.syntax.printable import printable

LINKTYPE_USER0: Final = 147

_SECTION_HEADER: Final = 0x0A0D0D0A
_INTERFACE_DESCRIPTION: Final = 1
_ENHANCED_PACKET: Final = 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_ANY_LENGTH: Final = 0xFFFFFFFFFFFFFFFF

# Options, which have the same numbers in different blocks.
_END_OF_OPTIONS: Final = 0
_COMMENT: Final = 1
_USER_APPLICATION: Final = 4
_IF_NAME: Final = 2
_IF_DESCRIPTION: Final = 3
_IF_TSRESOL: Final = 9
_EPB_FLAGS: Final = 2
_EPB_DROPCOUNT: Final = 4

_NANOSECONDS: Final = b"\x09"  # 10 to the power of -9
_DIRECTIONS: Final = {"in": 1, "out": 2}


class Capture:
    """Turns records into the blocks of one file."""

    def __init__(self) -> None:
        #: The port's id and name → the number of its interface.
        self._interfaces: dict[tuple[int | None, bytes], int] = {}

    def begin(self) -> bytes:
        """Return what the file begins with."""
        body = struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _ANY_LENGTH)
        return _block(_SECTION_HEADER, body + _options((_USER_APPLICATION, b"vconfs tap")))

    def add(self, record: Record) -> bytes:
        """Return the blocks of a record."""
        key = (record.id, record.name)
        new = b""
        if key not in self._interfaces:
            self._interfaces[key] = len(self._interfaces)
            new = _interface(record)
        return new + _packet(self._interfaces[key], record)


def _interface(record: Record) -> bytes:
    if record.id is None:
        name, description = b"tap", b"what the tap itself has to say"
    else:
        description = f"vcon{record.id}".encode()
        name = _text(record.name) or description
    options = _options(
        (_IF_NAME, name), (_IF_DESCRIPTION, description), (_IF_TSRESOL, _NANOSECONDS)
    )
    return _block(_INTERFACE_DESCRIPTION, struct.pack("<HHI", LINKTYPE_USER0, 0, 0) + options)


def _packet(interface: int, record: Record) -> bytes:
    options = []
    if record.event in _DIRECTIONS:
        options.append((_EPB_FLAGS, struct.pack("<I", _DIRECTIONS[record.event])))
    else:
        options.append((_COMMENT, _text(record.summary)))
    if record.event == "lost":
        options.append((_EPB_DROPCOUNT, struct.pack("<Q", record.more["records"])))
    size, high, low = len(record.data), record.time_ns >> 32, record.time_ns & 0xFFFFFFFF
    body = struct.pack("<IIIII", interface, high, low, size, size) + _padded(record.data)
    return _block(_ENHANCED_PACKET, body + _options(*options))


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _options(*options: tuple[int, bytes]) -> bytes:
    coded = (struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    return b"".join(coded) + struct.pack("<HH", _END_OF_OPTIONS, 0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _text(text: str | bytes) -> bytes:
    """Return `text` in UTF-8, safe to show, and cut to the length of an option."""
    return printable(text).encode()[:0xFFFF]

"""A small reader of pcapng files, written from the format's draft and not from our writer."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen


@frozen
class Interface:
    """An Interface Description Block."""

    link_type: int
    options: dict[int, bytes]


@frozen
class Packet:
    """An Enhanced Packet Block."""

    interface: Interface
    time: int
    data: bytes
    options: dict[int, bytes]

    @property
    def port(self) -> str:
        return self.interface.options[2].decode()

    @property
    def direction(self) -> str:
        flags = int.from_bytes(self.options.get(2, bytes(4)), "little")
        return {0: "", 1: "in", 2: "out"}[flags & 3]

    @property
    def comment(self) -> str:
        return self.options.get(1, b"").decode()


def packets(file: bytes) -> list[Packet]:
    """Return the packets of a file, and check all its lengths."""
    interfaces: list[Interface] = []
    found = []
    for number, (kind, body) in enumerate(_blocks(file)):
        assert (kind == 0x0A0D0D0A) == (number == 0)
        if kind == 0x0A0D0D0A:
            assert body[:4] == bytes.fromhex("4d3c2b1a")
            assert body[4:8] == bytes.fromhex("01000000")  # version 1.0
        elif kind == 1:
            interfaces.append(Interface(_number(body, 0, 2), _options(body[8:])))
        else:
            assert kind == 6
            interface, high, low, captured, original = (
                _number(body, at, 4) for at in range(0, 20, 4)
            )
            assert captured == original
            end = 20 + captured + -captured % 4
            time = (high << 32) + low
            options = _options(body[end:])
            found.append(Packet(interfaces[interface], time, body[20 : 20 + captured], options))
    return found


def _blocks(file: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(file):
        kind, size = _number(file, at, 4), _number(file, at + 4, 4)
        assert size % 4 == 0
        assert _number(file, at + size - 4, 4) == size
        yield kind, file[at + 8 : at + size - 4]
        at += size
    assert at == len(file)


def _options(body: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while True:
        code, size = _number(body, at, 2), _number(body, at + 2, 2)
        if code == 0:
            assert (size, at + 4) == (0, len(body))
            return options
        options[code] = body[at + 4 : at + 4 + size]
        at += 4 + size + -size % 4


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")

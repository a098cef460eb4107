"""The lines of qtest."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vconfs.protocol import qtest
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError
from vconfs.protocol.lines import LineReader
from vconfs.protocol.qtest import LINE_MAX, Answer, Interrupt, QtestEvent, Refused, parse_line


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (qtest.read(0xE0000000, 1), b"readb 0xe0000000\n"),
        (qtest.read(0x10, 8), b"readq 0x10\n"),
        (qtest.write(0xE0000014, 2, 5), b"writew 0xe0000014 0x5\n"),
        (qtest.read_port(0xCFC, 4), b"inl 0xcfc\n"),
        (qtest.write_port(0xCF8, 4, 0x80002000), b"outl 0xcf8 0x80002000\n"),
        (qtest.intercept_interrupts("ioapic"), b"irq_intercept_in ioapic\n"),
    ],
)
def test_commands(command: bytes, line: bytes) -> None:
    assert command == line


def test_sizes_that_do_not_exist() -> None:
    with pytest.raises(LocalProtocolError, match="3 bytes"):
        qtest.read(0, 3)
    with pytest.raises(LocalProtocolError, match="8 bytes"):
        qtest.read_port(0, 8)


LINES: list[tuple[bytes, QtestEvent]] = [
    (b"OK", Answer(0)),
    (b"OK 0x1043", Answer(0x1043)),
    (b"OK 0x0000000010", Answer(16)),
    (b"OK 12", Answer(12)),
    (b"FAIL Unknown command 'x'", Refused("Unknown command 'x'")),
    (b"ERR no \xff", Refused("no \\xff")),
    (b"FAIL", Refused("")),
    (b"IRQ raise 20", Interrupt(20, True)),
    (b"IRQ lower 20", Interrupt(20, False)),
]


@pytest.mark.parametrize(("line", "event"), LINES)
def test_lines(line: bytes, event: QtestEvent) -> None:
    assert parse_line(line) == event


def test_lines_byte_by_byte() -> None:
    reader = LineReader(LINE_MAX)
    stream = b"".join(line + b"\n" for line, _ in LINES)
    events = [parse_line(line) for byte in stream for line in reader.feed(bytes([byte]))]
    assert events == [event for _, event in LINES]


@pytest.mark.parametrize(
    "line",
    [b"", b"YES", b"OK x", b"OK 1 2", b"OK -1", b"OK 0x1" + 16 * b"0", b"IRQ raise", b"IRQ up 1"],
)
def test_bad_lines(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="not a line of qtest"):
        parse_line(line)


@given(st.binary(max_size=50))
def test_any_bytes_give_an_event_or_the_error(line: bytes) -> None:
    with suppress(RemoteProtocolError):
        parse_line(line)

"""The records of a tap, and those that wait for a reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vconfs.protocol import tap
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.lines import LineReader
from vconfs.protocol.tap import Record, TapBacklog

from .test_control_protocol import VALIDATOR

#: A record, its line, and its words for people.
RECORDS = [
    (
        Record(5, "out", 1, b"chat", b"hi\n"),
        b'{"time_ns": 5, "event": "out", "id": 1, "name": "chat", "data": "aGkK"}',
        "out",
    ),
    (
        Record(6, "in", 0, b"\xff", b""),
        b'{"time_ns": 6, "event": "in", "id": 0, "name": "\\udcff", "data": ""}',
        "in",
    ),
    (
        Record(7, "open", 2, b"", more={"pid": 12, "program": "cat"}),
        b'{"time_ns": 7, "event": "open", "id": 2, "name": "", "pid": 12, "program": "cat"}',
        "open by cat (pid 12)",
    ),
    (
        Record(8, "present", 2, b"", more={"connected": False}),
        b'{"time_ns": 8, "event": "present", "id": 2, "name": "", "connected": false}',
        "present, not connected",
    ),
    (
        Record(9, "lost", more={"records": 3, "bytes": 70}),
        b'{"time_ns": 9, "event": "lost", "records": 3, "bytes": 70}',
        "lost 3 records with 70 bytes: they were not read in time",
    ),
    (Record(9, "close", 3), b'{"time_ns": 9, "event": "close", "id": 3, "name": ""}', "close"),
]


@pytest.mark.parametrize(("record", "line", "words"), RECORDS)
def test_a_record_is_this_line(record: Record, line: bytes, words: str) -> None:
    assert tap.encode(record) == line + b"\n"
    assert tap.parse(line) == record
    assert record.summary == words
    if "program" not in record.more:  # which only the guest end knows
        VALIDATOR.validate(json.loads(line))


@given(
    st.builds(
        Record,
        st.integers(0, (1 << 63) - 1),
        st.sampled_from(tap.DATA_EVENTS),
        st.integers(0, 1 << 32),
        st.binary(max_size=64),
        st.binary(max_size=200),
    )
)
def test_a_record_is_read_back_as_it_was(record: Record) -> None:
    assert tap.parse(tap.encode(record).rstrip(b"\n")) == record


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 60_000,
        b'{"event": "in"}',
        b'{"time_ns": -1, "event": "in"}',
        b'{"time_ns": 9223372036854775808, "event": "in"}',
        b'{"time_ns": 1, "event": "lost"}',
        b'{"time_ns": 1, "event": "lost", "records": "x", "bytes": 1}',
        b'{"time_ns": 1, "event": "lost", "records": -1, "bytes": 1}',
        b'{"time_ns": "1", "event": "in"}',
        b'{"time_ns": 1, "event": "in", "id": "x"}',
        b'{"time_ns": 1, "event": "in", "id": 1, "name": 3}',
        b'{"time_ns": 1, "event": "in", "id": 1, "name": "\\ud800"}',
        b'{"time_ns": 1, "event": "in", "id": 1, "data": "?"}',
        b'{"time_ns": 1, "event": "in", "id": 1, "data": "\xc3\xa9"}',
    ],
)
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        tap.parse(line)


@given(st.binary())
def test_no_line_has_another_outcome(line: bytes) -> None:
    try:
        record = tap.parse(line)
    except RemoteProtocolError:
        return
    assert isinstance(record, Record)


def test_a_large_transfer_has_several_records_that_are_copies() -> None:
    data = bytearray(b"x" * (tap.DATA_MAX * 2 + 1))
    pieces = list(tap.pieces(data))
    data[:] = b"y" * len(data)
    assert [len(piece) for piece in pieces] == [tap.DATA_MAX, tap.DATA_MAX, 1]
    assert set(b"".join(pieces)) == {ord("x")}


def test_the_longest_record_fits_into_a_line() -> None:
    longest = Record((1 << 63) - 1, "out", 1 << 32, b"\xff" * 4096, bytes(tap.DATA_MAX))
    assert len(tap.encode(longest)) < tap.LINE_MAX


@pytest.mark.parametrize(
    ("text", "ids"),
    [(b"1", {1}), (b"3 1\n0", {0, 1, 3}), (b"1 1", {1})],
)
def test_a_selection_is_the_ids_of_ports(text: bytes, ids: set[int]) -> None:
    assert tap.parse_selection(text) == ids
    assert tap.parse_selection(tap.encode_selection(sorted(ids))) == ids


@pytest.mark.parametrize("text", [b"", b" \n", b"x", b"-1", b"1,2", b"9" * 11, b"1 " * 40_000])
def test_what_is_no_selection_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="ids"):
        tap.parse_selection(text)


# --- the backlog --------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(0, 60), st.integers(1, 4000))
def test_a_backlog_is_bounded_and_tells_all_that_it_lost(
    sizes: list[int], taken_after: int, chunk: int
) -> None:
    backlog, out = TapBacklog(2000), bytearray()
    for number, size in enumerate(sizes):
        record = Record(number, "in", 1, b"", bytes(size))
        backlog.put_record(record, tap.encode(record))
        assert backlog._size <= 2000
        if number == taken_after:
            out += b"".join(backlog.take(chunk))
    while pieces := backlog.take(chunk):
        assert sum(map(len, pieces)) <= chunk
        out += b"".join(pieces)
    assert backlog._size == 0
    records = [tap.parse(line) for line in LineReader(1 << 16).feed(bytes(out))]
    times = [record.time_ns for record in records]
    assert times == sorted(times)
    shown = [record for record in records if record.event == "in"]
    lost = [record.more for record in records if record.event == "lost"]
    assert len(shown) + sum(more["records"] for more in lost) == len(sizes)
    assert sum(len(record.data) for record in shown) + sum(more["bytes"] for more in lost) == sum(
        sizes
    )

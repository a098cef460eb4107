"""The pcapng file of a tap, read by an independent reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.pcapng_reader import packets
from vconfs.protocol.pcapng import LINKTYPE_USER0, Capture
from vconfs.protocol.tap import Record


def written(*records: Record) -> bytes:
    capture = Capture()
    return capture.begin() + b"".join(map(capture.add, records))


def test_an_empty_capture_is_a_file() -> None:
    assert packets(written()) == []


def test_a_port_is_an_interface_with_its_name() -> None:
    one, two, three, four = packets(
        written(
            Record(1 << 60, "in", 3, b"chat", b"hello"),
            Record((1 << 60) + 1, "out", 4, b"", b"x"),
            Record(3, "out", 3, b"chat", b"back"),
            Record(4, "in", 3, b"renamed"),
        )
    )
    assert [packet.port for packet in (one, two, three, four)] == [
        *("chat", "vcon4", "chat", "renamed")
    ]
    assert one.interface is three.interface
    assert one.interface.link_type == LINKTYPE_USER0 == 147
    assert one.interface.options[3] == b"vcon3"
    assert one.interface.options[9] == b"\x09"  # times are in nanoseconds
    assert (one.time, one.direction, one.data) == (1 << 60, "in", b"hello")
    assert (two.time, two.direction, two.data) == ((1 << 60) + 1, "out", b"x")


def test_an_event_is_a_packet_with_a_comment() -> None:
    opened, lost = packets(
        written(
            Record(1, "open", 3, b"chat", more={"pid": 7, "program": "c\udcffat"}),
            Record(2, "lost", more={"records": 5, "bytes": 70}),
        )
    )
    assert (opened.comment, opened.data, opened.direction) == (r"open by c\xffat (pid 7)", b"", "")
    assert lost.port == "tap"
    assert "5 records with 70 bytes" in lost.comment
    assert int.from_bytes(lost.options[4], "little") == 5


def test_no_name_breaks_the_file() -> None:
    names = [b"\xff\x00\n", "é".encode(), b"x" * 100_000]
    read = packets(written(*(Record(1, "in", 1, name, b"d") for name in names)))
    assert [packet.port for packet in read] == [r"\xff\x00\x0a", "é", "x" * 0xFFFF]


@given(st.lists(st.tuples(st.sampled_from(["in", "out"]), st.integers(0, 3), st.binary())))
def test_all_data_is_read_back(sent: list[tuple[str, int, bytes]]) -> None:
    records = [
        Record(time, event, port_id, b"", data) for time, (event, port_id, data) in enumerate(sent)
    ]
    read = packets(written(*records))
    assert [(it.time, it.direction, it.port, it.data) for it in read] == [
        (it.time_ns, it.event, f"vcon{it.id}", it.data) for it in records
    ]

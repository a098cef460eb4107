"""Frames that wait for a stream: in two lanes, and in order for each port."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vconfs.streams._outbox import Outbox, OutgoingFrame


def drained(outbox: Outbox, step: int = 1 << 20) -> bytes:
    """Return all waiting bytes, taken `step` at a time."""
    out = b""
    while outbox.size:
        piece = b"".join(outbox.head())[:step]
        out += piece
        outbox.remove(len(piece))
    assert b"".join(outbox.head()) == b""
    return out


def filled(*frames: OutgoingFrame) -> Outbox:
    outbox = Outbox()
    for frame in frames:
        outbox.put(frame)
    return outbox


def data(port: int, letters: bytes) -> OutgoingFrame:
    return OutgoingFrame(letters[:1], letters[1:], port)


def control(port: int, letters: bytes) -> OutgoingFrame:
    return OutgoingFrame(letters, port=port, urgent=True)


def test_control_goes_before_the_data_of_others() -> None:
    frames = [data(1, b"one."), data(2, b"two."), control(3, b"C."), control(4, b"D.")]
    assert drained(filled(*frames)) == b"C.D.one.two."


def test_a_hang_up_goes_behind_its_own_data_and_what_follows_it_behind_it() -> None:
    frames = [data(1, b"one."), data(2, b"two."), control(1, b"close."), control(1, b"open.")]
    assert drained(filled(*frames, data(1, b"new."))) == b"one.two.close.open.new."


def test_what_belongs_to_no_port_goes_first_or_in_order() -> None:
    frames = [data(1, b"one."), OutgoingFrame(b"config."), OutgoingFrame(b"credit.", urgent=True)]
    assert drained(filled(*frames)) == b"credit.one.config."


def test_the_frame_that_is_under_way_comes_to_its_end() -> None:
    outbox = Outbox()
    outbox.put(data(1, b"long."), sent=2)
    outbox.put(control(2, b"C."))
    assert (outbox.size, drained(outbox, 1)) == (5, b"ng.C.")
    outbox = filled(data(1, b"long."), data(1, b"er."))
    outbox.remove(2)
    outbox.put(control(2, b"C."))
    outbox.put(control(1, b"close."))
    assert drained(outbox) == b"ng.C.er.close."


def test_a_port_all_of_whose_data_is_under_way_can_be_hung_up_next() -> None:
    outbox = filled(data(1, b"one."), data(2, b"two."))
    outbox.remove(1)
    outbox.put(control(1, b"close."))
    assert drained(outbox) == b"ne.close.two."


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("sent", [0, 1, 4, 5, 100, 20_003])
def test_the_rest_of_a_frame_is_kept(kind: type[bytes | bytearray], sent: int) -> None:
    content = kind(bytes(range(250)) * 80)
    whole = b"head" + bytes(content)
    outbox = Outbox()
    outbox.put(OutgoingFrame(b"head", memoryview(content), 1), sent)
    if isinstance(content, bytearray):
        content[:] = bytes(len(content))  # the buffer is used again
    assert b"".join(outbox.head()) == whole[sent:]
    assert outbox.size == len(whole) - sent
    assert outbox.owed(sent) == {1: 20_000}
    outbox.remove(outbox.size)
    assert not outbox.size
    assert not outbox.untaken(0)


frames = st.builds(
    OutgoingFrame,
    st.binary(min_size=1, max_size=3),
    st.binary(max_size=5),
    st.none() | st.integers(0, 3),
    urgent=st.booleans(),
)


@given(st.lists(frames | st.integers(1, 12), max_size=40), st.integers(1, 9))
def test_no_frame_is_torn_lost_or_overtaken_by_one_of_its_port(
    steps: list[OutgoingFrame | int], size: int
) -> None:
    outbox, out, put = Outbox(), b"", list[OutgoingFrame]()
    for step in steps:
        if isinstance(step, OutgoingFrame):
            tagged = OutgoingFrame(
                bytes([len(put)]) + step.head, step.data, step.port, urgent=step.urgent
            )
            outbox.put(tagged)
            put.append(tagged)
        else:
            piece = b"".join(outbox.head())[:step]
            outbox.remove(len(piece))
            out += piece
    out += drained(outbox, size)
    order: list[int] = []
    while out:
        order.append(out[0])
        frame = put[out[0]]
        assert out.startswith(frame.head + bytes(frame.data))
        out = out[frame.size :]
    assert sorted(order) == list(range(len(put)))
    for port in range(4):
        of_port = [number for number in order if put[number].port == port]
        behind = [n for n in of_port if not put[n].urgent]
        assert behind == sorted(behind)
        for urgent in (n for n in of_port if put[n].urgent):
            assert all(n < urgent for n in of_port[: of_port.index(urgent)])

"""Properties of both dialects and both ends, with any input."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy

from vconfs.protocol import events, v8, virtio1
from vconfs.protocol.dialect import DIALECTS, Dialect, End, Guest, Host
from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.events import Event, Message
from vconfs.protocol.v8 import NAME_MAX, PORTS_MAX


@frozen
class Call:
    """A call of one end, and the event of its message at the other end, or None."""

    name: str
    args: tuple[Any, ...]
    event: Event | None

    def send(self, end: End) -> Message | None:
        message: Message | None = getattr(end, self.name)(*self.args)
        return message


def calls(name: str, event: Any, *args: SearchStrategy[Any]) -> SearchStrategy[Call]:
    """Calls of `name`; `event`: a function of the arguments, or None."""
    made = st.tuples(*args)
    return made.map(lambda args: Call(name, args, None if event is None else event(*args)))


IDS = st.integers(0, 30)
NAMES = st.binary(max_size=40).filter(lambda name: not name.endswith(b"\0"))
FLAGS = st.booleans()
MIB = st.integers(1, 65535)
CELLS = st.integers(0, 65535)

FROM_BOTH = calls("port_open", events.PortOpened, IDS, FLAGS)
FROM_HOST = st.one_of(
    FROM_BOTH,
    calls("port_add", events.PortAdded, IDS),
    calls("port_remove", events.PortRemoved, IDS),
    calls("port_name", events.PortNamed, IDS, NAMES),
    calls("console_port", events.ConsolePort, IDS),
    calls("resize", events.Resized, IDS, CELLS, CELLS),
)
V8_THROTTLE = calls("throttle", events.Throttled, IDS, FLAGS)


@frozen
class Spoken:
    """A dialect, and what its tests need to know."""

    name: str
    #: Bytes of a control message before its payload.
    head: int
    #: The queues that control messages come on.
    to_guest: int
    to_host: int
    from_host: SearchStrategy[Call]
    from_guest: SearchStrategy[Call]

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.name]

    @property
    def guest(self) -> Guest:
        return self.dialect.guest(self.dialect.features)

    @property
    def host(self) -> Host:
        return self.dialect.host(self.dialect.features)

    @property
    def directions(self) -> list[tuple[End, End, int, SearchStrategy[Call]]]:
        """Who sends, who receives, on which queue, and what."""
        return [
            (self.host, self.guest, self.to_guest, self.from_host),
            (self.guest, self.host, self.to_host, self.from_guest),
        ]


SPOKEN = [
    Spoken(
        "v8",
        head=16,
        to_guest=0,
        to_host=1,
        from_host=st.one_of(
            FROM_HOST,
            V8_THROTTLE,
            calls("cache_buffers", events.CacheSet, IDS, FLAGS),
            calls(
                "buffer_limit", lambda port_id, mib: events.LimitSet(port_id, mib << 20), IDS, MIB
            ),
        ),
        from_guest=st.one_of(
            FROM_BOTH,
            V8_THROTTLE,
            calls("device_ready", None),
            calls("port_ready", events.NameAsked, IDS),
        ),
    ),
    Spoken(
        "virtio1",
        head=8,
        to_guest=2,
        to_host=3,
        from_host=st.one_of(
            FROM_HOST,
            calls("throttle", None, IDS, FLAGS),
            calls("cache_buffers", None, IDS, FLAGS),
            calls("buffer_limit", None, IDS, MIB),
        ),
        from_guest=st.one_of(
            FROM_BOTH,
            calls("throttle", None, IDS, FLAGS),
            calls("device_ready", lambda: events.DeviceReady(True)),
            calls("port_ready", lambda port_id: events.PortReady(port_id, True), IDS),
        ),
    ),
]

#: What the owner of each end is ready for: any other event would be a traceback there.
FOR_BOTH = (events.Data, events.Ignored, events.PortOpened, events.Throttled)
FOR_GUEST = (
    *FOR_BOTH,
    events.PortAdded,
    events.PortRemoved,
    events.PortNamed,
    events.ConsolePort,
    events.CacheSet,
    events.LimitSet,
    events.Resized,
)
FOR_HOST = (*FOR_BOTH, events.DeviceReady, events.PortReady, events.NameAsked)

both = pytest.mark.parametrize("spoken", SPOKEN, ids=[spoken.name for spoken in SPOKEN])


def test_all_dialects_are_in_the_table() -> None:
    assert {spoken.name for spoken in SPOKEN} == set(DIALECTS)


def receive(end: End, queue: int, data: bytes) -> Event:
    """Let an end read a buffer, and see that its owner can handle what comes of it."""
    event = end.receive(queue, memoryview(data))
    guest = isinstance(end, v8.GuestEnd | virtio1.GuestEnd)
    assert isinstance(event, FOR_GUEST if guest else FOR_HOST)
    if isinstance(event, events.PortAdded):
        assert event.id < PORTS_MAX
    if isinstance(event, events.PortNamed):
        assert len(event.name) <= NAME_MAX
    return event


# --- what one end sends, the other end reads ----------------------------------------------


@both
@given(data=st.data())
def test_what_one_end_sends_the_other_reads(spoken: Spoken, data: DataObject) -> None:
    for sender, receiver, queue, sent in spoken.directions:
        call = data.draw(sent)
        message = call.send(sender)
        if call.event is None:
            assert message is None
        else:
            assert message is not None
            assert message.queue == queue
            assert receive(receiver, queue, message.data) == call.event


@both
@given(data=st.data())
def test_a_message_cut_at_any_byte(spoken: Spoken, data: DataObject) -> None:
    """Cut in its payload, a name is shorter; everything else is ignored."""
    for sender, receiver, queue, sent in spoken.directions:
        call = data.draw(sent)
        message = call.send(sender)
        if message is None:
            continue
        for length in range(len(message.data)):
            event = receive(receiver, queue, message.data[:length])
            payload = length - spoken.head
            if payload >= 0 and isinstance(call.event, events.PortNamed):
                name = call.event.name[:payload].removesuffix(b"\0")
                assert event == events.PortNamed(call.event.id, name)
            else:
                assert isinstance(event, events.Ignored)


@both
@given(data=st.data(), more=st.binary(min_size=1, max_size=8))
def test_bytes_after_a_message_change_nothing(
    spoken: Spoken, data: DataObject, more: bytes
) -> None:
    for sender, receiver, queue, sent in spoken.directions:
        call = data.draw(sent)
        message = call.send(sender)
        if message is not None and not isinstance(call.event, events.PortNamed):
            assert receive(receiver, queue, message.data + more) == call.event


@both
@given(port_id=IDS, size=st.integers(0, 2**32 - 1), content=st.binary(max_size=40))
def test_data_arrives_at_its_port(spoken: Spoken, port_id: int, size: int, content: bytes) -> None:
    for sender, receiver, _, _ in spoken.directions:
        header = sender.data_header(port_id, size)
        assert len(header) == sender.header_size
        event = receive(receiver, sender.data_queue(port_id), header + content)
        told = size if sender.throttles else None
        assert event == events.Data(port_id, memoryview(content), told)


@both
def test_both_ends_agree_on_the_queues(spoken: Spoken) -> None:
    guest, host = spoken.guest, spoken.host
    guest.receive_config(host.config(1))
    assert guest.queues == host.queues
    for port_id in range(31):
        pair = guest.receive_queue(port_id), host.receive_queue(port_id)
        assert (host.data_queue(port_id), guest.data_queue(port_id)) == pair
        assert [queue % 2 for queue in pair] == [0, 1]
        assert max(pair) < guest.queues
        assert {guest.port_of(queue) for queue in pair} <= {port_id, None}


# --- names and sizes ----------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"", b""),
        (b"\0", b""),
        (b"a", b"a"),
        (b"org.example\0", b"org.example"),
        (b"two\0\0", b"two\0"),
        (b"/", b"/"),
        (b"a/b", b"a/b"),
        (b"..", b".."),
        (b"in\0side", b"in\0side"),
        (b"\xff\xfe\x80", b"\xff\xfe\x80"),
        (b"n" * NAME_MAX, b"n" * NAME_MAX),
        (b"n" * NAME_MAX + b"\0", b"n" * NAME_MAX),
    ],
    ids=lambda name: repr(name[:12]),
)
def test_names(spoken: Spoken, sent: bytes, name: bytes) -> None:
    """One trailing NUL is stripped, for some hosts send it; the owner makes a file name of it."""
    assert receive(spoken.guest, spoken.to_guest, name_of_port_3(spoken, sent)) == events.PortNamed(
        3, name
    )


@both
@pytest.mark.parametrize("length", [NAME_MAX + 1, 65536])
def test_a_name_that_is_too_long_is_ignored(spoken: Spoken, length: int) -> None:
    message = name_of_port_3(spoken, b"n" * length)
    assert receive(spoken.guest, spoken.to_guest, message) == events.Ignored(
        3, f"a name of {length} bytes is longer than {NAME_MAX}"
    )


def name_of_port_3(spoken: Spoken, name: bytes) -> bytes:
    """A PORT_NAME that our own host end would not send."""
    message = spoken.host.port_name(3, b"")
    assert message is not None
    return message.data + name


@both
def test_what_cannot_be_sent_is_the_callers_mistake(spoken: Spoken) -> None:
    host = spoken.host
    with pytest.raises(LocalProtocolError, match="at most 4080 bytes, not 4081"):
        host.port_name(3, bytes(NAME_MAX + 1))
    for cols, rows in [(-1, 25), (80, -1), (65536, 25), (80, 65536)]:
        with pytest.raises(LocalProtocolError, match=f"0 to 65535, not {cols} and {rows}"):
            host.resize(0, cols, rows)
        with pytest.raises(LocalProtocolError, match=f"0 to 65535, not {cols} and {rows}"):
            host.config(1, cols, rows)


# --- the config space ---------------------------------------------------------------------

ONE_CONSOLE = [events.PortAdded(0), events.ConsolePort(0), events.PortOpened(0, True)]


@both
@pytest.mark.parametrize("length", range(8))
def test_a_short_config_space_is_ignored(spoken: Spoken, length: int) -> None:
    assert spoken.guest.receive_config(bytes(length)) == [
        events.Ignored(None, f"a config space of {length} bytes is too short")
    ]


@both
@pytest.mark.parametrize("length", range(9))
def test_without_multiport_no_more_is_read_than_was_negotiated(spoken: Spoken, length: int) -> None:
    config = struct.pack("<HHI", 80, 25, 9)[:length]
    plain = spoken.dialect.guest(0)
    assert plain.receive_config(config) == ONE_CONSOLE
    assert plain.receive_config(config) == []
    sized = spoken.dialect.guest(v8.F_SIZE)
    if length < 4:
        short = events.Ignored(None, f"a config space of {length} bytes is too short")
        assert sized.receive_config(config) == [*ONE_CONSOLE, short]
        assert sized.receive_config(config) == [short]
    else:
        assert sized.receive_config(config) == [*ONE_CONSOLE, events.Resized(0, 80, 25)]
        assert sized.receive_config(config) == []


@both
def test_without_multiport_every_buffer_is_data_and_nothing_else_is_sent(spoken: Spoken) -> None:
    features = spoken.dialect.features & ~v8.F_MULTIPORT
    guest, host = spoken.dialect.guest(features), spoken.dialect.host(features)
    for sender, receiver in ((guest, host), (host, guest)):
        assert sender.queues == 2
        assert sender.header_size == 0
        assert sender.data_header(0, 5) == b""
        assert sender.port_open(0, True) is sender.throttle(0, True) is None
        queue = sender.data_queue(0)
        assert queue == receiver.receive_queue(0)
        for data in (b"", b"hi", bytes(40)):
            assert receive(receiver, queue, data) == events.Data(0, memoryview(data))
    assert guest.device_ready() is guest.port_ready(0) is None
    assert host.port_add(0) is host.port_remove(0) is host.console_port(0) is None
    assert host.port_name(0, b"name") is host.resize(0, 80, 25) is None
    assert host.cache_buffers(0, True) is host.buffer_limit(0, 1) is None


@both
@given(st.data())
def test_any_series_of_config_spaces_is_read(spoken: Spoken, data: DataObject) -> None:
    """Ports are added once and removed once, and no config space is news twice."""
    guest = spoken.dialect.guest(data.draw(st.sampled_from([0, 1, 2, 3, spoken.dialect.features])))
    there: set[int] = set()
    count = st.one_of(st.integers(0, 40), st.sampled_from([PORTS_MAX, PORTS_MAX + 1, 2**32 - 1]))
    spaces = st.builds(struct.Struct("<HHI").pack, CELLS, CELLS, count) | st.binary(max_size=12)
    for config in data.draw(st.lists(spaces, max_size=6)):
        for event in guest.receive_config(config):
            match event:
                case events.PortAdded(port_id):
                    assert port_id not in there
                    there.add(port_id)
                case events.PortRemoved(port_id):
                    there.remove(port_id)
                case _:
                    assert isinstance(event, (*FOR_GUEST, events.NameStale))
        assert there == set(range(len(there)))
        assert len(there) <= PORTS_MAX
        for event in guest.receive_config(config):
            assert isinstance(event, events.Ignored | events.NameStale)


# --- anything at all ----------------------------------------------------------------------


@both
@given(buffer=st.binary(max_size=64), features=st.integers(0, 3))
def test_random_buffers_are_read(spoken: Spoken, buffer: bytes, features: int) -> None:
    for made in (features, spoken.dialect.features):
        for end in (spoken.dialect.guest(made), spoken.dialect.host(made)):
            for queue in range(min(end.queues, 8)):
                receive(end, queue, buffer)


@both
@given(data=st.data())
def test_messages_with_wrong_bytes_in_them_are_read(spoken: Spoken, data: DataObject) -> None:
    for sender, receiver, queue, sent in spoken.directions:
        message = data.draw(sent).send(sender)
        if message is not None:
            wrong = bytearray(message.data)
            places = st.tuples(st.integers(0, len(wrong) - 1), st.integers(0, 255))
            for place, byte in data.draw(st.lists(places, max_size=4)):
                wrong[place] = byte
            receive(receiver, queue, bytes(wrong))


@both
@given(data=st.data())
def test_an_end_refuses_its_own_messages(spoken: Spoken, data: DataObject) -> None:
    """A peer that sends what is ours to send."""
    for sender, _, queue, sent in spoken.directions:
        call = data.draw(sent)
        message = call.send(sender)
        if message is not None:
            event = receive(sender, queue ^ 1, message.data)
            if call.name in ("port_open", "throttle"):
                assert event == call.event
            else:
                assert isinstance(event, events.Ignored | events.PortNamed | events.NameAsked)

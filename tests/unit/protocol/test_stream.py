"""The stream protocol: both ends against each other, what a peer may not send, and credit."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from vconfs.protocol import stream
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError
from vconfs.protocol.stream import (
    BYE,
    CONFIG,
    CREDIT,
    INPUT,
    NAME,
    NAMES,
    OUTPUT,
    Closed,
    ConfigChanged,
    Connection,
    CreditReceived,
    Event,
    Frame,
    GuestNamed,
    Hello,
    Role,
)

GUEST, HOST = Role.GUEST, Role.HOST
SPACE = struct.pack("<HHI", 80, 25, 4)
WINDOW = 2048


def hello(
    role: Role,
    *,
    magic: bytes = b"\x89VCON\r\n\0",
    version: int = 2,
    answer: bool = False,
    window: int = 0,
    features: int = 3,
    config: bytes = b"",
    size: int | None = None,
) -> bytes:
    size = len(config) if size is None else size
    return magic + struct.pack("<HBBIQI", version, role, answer, window, features, size) + config


def frame(queue: int, payload: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<IB", len(payload) if size is None else size, queue) + payload


def events(connection: Connection) -> Iterator[Event]:
    while (event := connection.next_event()) is not None:
        yield event


def plain(event: Event) -> object:
    """An event that can be compared, whatever its payload is a view of."""
    return (event.queue, bytes(event.payload)) if isinstance(event, Frame) else event


def outcome(connection: Connection, pieces: list[bytes], *, eof: bool = True) -> list[object]:
    """Everything that comes of some input, an error last."""
    seen: list[object] = []
    try:
        for piece in pieces:
            connection.feed(piece)
            seen += map(plain, events(connection))
        if eof:
            connection.feed_eof()
            seen += map(plain, events(connection))
    except RemoteProtocolError as error:
        seen.append(str(error))
    return seen


def cut(data: bytes, size: int = 1) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def connected(
    role: Role, *, window: int = 0, peer_window: int = 0, features: int = 3
) -> Connection:
    """An end that has said hello and got the peer's."""
    connection = Connection(role, window=window)
    connection.hello(features, SPACE if role is HOST else b"")
    space = SPACE if role is GUEST else b""
    connection.feed(hello(Role(1 - role), window=peer_window, config=space))
    assert list(events(connection)) == [Hello(3, space, peer_window)]
    return connection


# Hello


@pytest.mark.parametrize("first", [GUEST, HOST, None])
def test_either_end_may_speak_first_and_both_know_the_same_features(first: Role | None) -> None:
    guest, host = Connection(GUEST, window=WINDOW), Connection(HOST)
    if first is GUEST:
        host.feed(guest.hello(0b0110))
        assert list(events(host)) == [Hello(0b0110, b"", WINDOW)]
        guest.feed(host.hello(0b0011, SPACE))
        assert list(events(guest)) == [Hello(0b0010, SPACE, 0)]
    elif first is HOST:
        guest.feed(host.hello(0b0011, SPACE))
        assert list(events(guest)) == [Hello(0b0011, SPACE, 0)]
        host.feed(guest.hello(0b0110))
        assert list(events(host)) == [Hello(0b0010, b"", WINDOW)]
    else:
        from_guest, from_host = guest.hello(0b0110), host.hello(0b0011, SPACE)
        guest.feed(from_host)
        host.feed(from_guest)
        assert list(events(guest)) == [Hello(0b0011, SPACE, 0)]
        assert list(events(host)) == [Hello(0b0110, b"", WINDOW)]
    assert guest.features == host.features == 0b0010


@pytest.mark.parametrize("lost", [GUEST, HOST, None])
@pytest.mark.parametrize("size", [1, 5, 200])
def test_both_ends_meet_though_a_hello_was_lost(lost: Role | None, size: int) -> None:
    ends = {GUEST: Connection(GUEST), HOST: Connection(HOST)}
    said = {GUEST: ends[GUEST].hello(0b0110), HOST: ends[HOST].hello(0b0011, SPACE)}
    if lost is not None:
        said[lost] = b""
    seen: dict[Role, list[object]] = {GUEST: [], HOST: []}
    while any(said.values()):
        for role, end in ends.items():
            peer = Role(1 - role)
            came = outcome(end, cut(said[peer], size), eof=False)
            said[peer] = b""
            if any(isinstance(event, Hello) for event in came):
                queue = OUTPUT if role is GUEST else INPUT
                said[role] += end.answer() + end.frame_header(queue, 1) + b"x"
            seen[role] += came
    assert [event for event in seen[GUEST] if not isinstance(event, Hello)] == [(INPUT, b"x")]
    assert [event for event in seen[HOST] if not isinstance(event, Hello)] == [(OUTPUT, b"x")]
    for end in ends.values():
        assert end.features == 0b0010
        assert end.answer() == b""


def test_a_missed_hello_is_sent_again_as_an_answer() -> None:
    host = Connection(HOST)
    assert host.hello(3, SPACE) == hello(HOST, config=SPACE)
    assert host.answer() == b""
    assert outcome(host, [hello(GUEST, features=2)], eof=False) == [Hello(2, b"", 0)]
    assert host.answer() == hello(HOST, answer=True, features=2, config=SPACE)


def test_a_hello_is_these_bytes() -> None:
    said = Connection(HOST, window=0x800).hello(0x0102030405060708, SPACE)
    assert (
        said
        == (
            b"\x89VCON\r\n\0\x02\x00\x01\x00\x00\x08\x00\x00"
            b"\x08\x07\x06\x05\x04\x03\x02\x01\x08\x00\x00\x00"
        )
        + SPACE
    )


# The guest's name


def asked(role: Role) -> Connection:
    """An end that has said hello and got the peer's, where both want the guest's name."""
    connection = Connection(role, window=WINDOW)
    connection.hello(NAMES | 3, SPACE if role is HOST else b"")
    space = SPACE if role is GUEST else b""
    connection.feed(hello(Role(1 - role), features=NAMES | 3, config=space))
    assert list(events(connection)) == [Hello(NAMES | 3, space, 0)]
    return connection


def test_a_guest_says_its_name_when_the_host_asks_for_it() -> None:
    guest, host = asked(GUEST), asked(HOST)
    said = guest.name("wëb1")
    assert said == frame(NAME, "wëb1".encode())
    assert outcome(host, [said], eof=False) == [GuestNamed("wëb1", 5)]
    host.acknowledge(5)
    header = guest.frame_header(OUTPUT, 1)
    assert outcome(host, cut(header + b"x"), eof=False) == [(OUTPUT, b"x")]


@pytest.mark.parametrize("role", [GUEST, HOST])
def test_no_name_is_said_to_a_peer_that_knows_none(role: Role) -> None:
    older = hello(Role(1 - role), features=3, config=SPACE if role is GUEST else b"")
    connection = Connection(role)
    connection.hello(NAMES | 3, SPACE if role is HOST else b"")
    connection.feed(older)
    assert len(list(events(connection))) == 1
    assert connection.features == 3
    with pytest.raises(LocalProtocolError, match="did not ask"):
        connection.name("web1")


def test_a_name_is_said_once_and_is_not_too_long() -> None:
    guest = asked(GUEST)
    with pytest.raises(LocalProtocolError, match="longer than 255"):
        guest.name("x" * 256)
    guest.name("x" * 255)
    with pytest.raises(LocalProtocolError, match="did not ask"):
        guest.name("y")


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (frame(OUTPUT, b"x"), "a frame on queue 1 before the guest's name"),
        (frame(NAME, size=256), "a NAME of 256 bytes is larger than 255"),
        (frame(NAME, b"a") + frame(NAME, b"b"), "a frame of 1 bytes on unknown queue 243"),
    ],
)
def test_wrong_names_are_refused(frames: bytes, error: str) -> None:
    assert outcome(asked(HOST), [frames])[-1] == error


def test_a_host_sends_no_name() -> None:
    seen = outcome(asked(GUEST), [frame(NAME, b"host")])
    assert seen == ["a frame of 4 bytes on unknown queue 243"]


def test_a_name_that_is_not_text_is_still_one() -> None:
    seen = outcome(asked(HOST), [frame(NAME, b"\xff/../")], eof=False)
    assert seen == [GuestNamed("\ufffd/../", 5)]


#: (what comes instead of the guest's good hello, what the host says to it)
BAD_HELLOS = [
    (
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7\r\n",
        "no hello: the stream begins with b'SSH-2.0-OpenSSH_9.2p1 Debian-2+d'",
    ),
    (b"root@host:~# ", "no hello: the stream begins with b'root@host:~# '"),
    (b"\x89VCON\n\0", "no hello: the stream begins with b'\\x89VCON\\n\\x00'"),
    (hello(GUEST, version=1), "the peer speaks version 1, not 2"),
    (hello(HOST), "the peer is a host end too, or the line echoes"),
    (
        hello(GUEST).replace(b"\x02\x00\x00\x00", b"\x02\x00\x02\x00", 1),
        "unknown role 2 in the hello",
    ),
    (hello(GUEST, window=1023), "a window of 1023 bytes is less than 1024"),
    (hello(GUEST, config=SPACE), "a config space of 8 bytes in the hello"),
    (hello(GUEST, size=1 << 31), "a config space of 2147483648 bytes in the hello"),
    (
        hello(GUEST, answer=True, features=0b1110),
        "features 0xc were accepted but not offered (0x3 were)",
    ),
]


@pytest.mark.parametrize(("data", "reason"), BAD_HELLOS)
def test_a_bad_hello_is_refused(data: bytes, reason: str) -> None:
    host = Connection(HOST)
    host.hello(3, SPACE)
    host.feed(data)
    for _ in range(2):  # it stays refused
        with pytest.raises(RemoteProtocolError) as refused:
            host.next_event()
        assert str(refused.value) == reason
        host.feed(hello(GUEST))


@pytest.mark.parametrize(("data", "reason"), BAD_HELLOS)
def test_a_bad_hello_is_refused_byte_by_byte(data: bytes, reason: str) -> None:
    host = Connection(HOST)
    host.hello(3, SPACE)
    (refused,) = outcome(host, cut(data))
    assert isinstance(refused, str)
    if reason.startswith("no hello"):  # known as soon as one byte is wrong
        assert reason.startswith(refused[:-1])
    else:
        assert refused == reason


def test_a_host_with_too_large_a_config_space_is_refused() -> None:
    guest = Connection(GUEST)
    assert outcome(guest, [hello(HOST, size=257)]) == ["a config space of 257 bytes in the hello"]


def test_an_answer_to_nothing_is_refused() -> None:
    host = Connection(HOST)
    assert outcome(host, [hello(GUEST, answer=True)]) == ["the hello answers one that was not sent"]


def test_a_frame_that_comes_before_our_hello_is_refused() -> None:
    host = Connection(HOST)
    assert outcome(host, [hello(GUEST) + frame(OUTPUT, b"x")]) == [
        Hello(3, b"", 0),
        "a frame on queue 1 before our hello",
    ]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("noise", [b"", b"Linux version 6.1\r\n" * 40, b"\x89VCON\r\n\x89" * 90])
def test_noise_before_the_hello_is_skipped_where_that_is_asked(noise: bytes, size: int) -> None:
    host = Connection(HOST, noise_max=len(noise))
    host.hello(3, SPACE)
    data = noise + hello(GUEST) + frame(OUTPUT, b"abc")
    assert outcome(host, cut(data, size), eof=False) == [Hello(3, b"", 0), (OUTPUT, b"abc")]


def test_more_noise_than_asked_is_refused() -> None:
    host = Connection(HOST, noise_max=9)
    assert outcome(host, [*cut(b"0123456789"), hello(GUEST)]) == [
        "no hello: the stream begins with b'0123456789'"
    ]


# Frames


def test_buffers_come_out_as_they_went_in() -> None:
    guest, host = connected(GUEST), connected(HOST)
    for end, other, queue in ((guest, host, OUTPUT), (host, guest, INPUT)):
        for payload in (b"", b"x", bytes(range(256)) * 512):
            data = end.frame_header(queue, len(payload)) + payload
            assert data == frame(queue, payload)
            for pieces in ([data], cut(data, 4096), [*cut(data[:300]), data[300:]]):
                assert outcome(other, pieces, eof=False) == [(queue, payload)]


def test_a_whole_frame_is_a_view_of_what_came() -> None:
    host = connected(HOST)
    data = frame(OUTPUT, b"abcdef") + frame(OUTPUT, b"gh")
    host.feed(data)
    for payload in (b"abcdef", b"gh"):
        event = host.next_event()
        assert isinstance(event, Frame)
        assert bytes(event.payload) == payload
        assert event.payload.obj is data


def test_a_config_change_and_a_goodbye_come_out_as_they_went_in() -> None:
    host, guest = connected(HOST), connected(GUEST)
    space = struct.pack("<HHI", 80, 25, 9)
    data = host.config(space) + host.bye("köln\n\x1b[2J")
    assert data == frame(CONFIG, space) + frame(BYE, "köln\n\x1b[2J".encode())
    assert outcome(guest, [data + frame(INPUT, b"late")]) == [
        ConfigChanged(space),
        Closed("köln??[2J"),
    ]
    assert host.bye("again") == b""
    assert host.room == 0


def test_a_long_goodbye_is_cut() -> None:
    data = connected(HOST).bye("x" * 300)
    assert outcome(connected(GUEST), [data]) == [Closed("x" * 256)]


def test_an_end_that_leaves_before_the_hello_sends_nothing() -> None:
    assert Connection(HOST).bye("no") == b""


#: (who receives it, what comes, the reason why it is refused)
BAD_FRAMES = [
    (HOST, frame(INPUT, b"x"), "a frame of 1 bytes on unknown queue 0"),
    (GUEST, frame(OUTPUT, b"x"), "a frame of 1 bytes on unknown queue 1"),
    (HOST, frame(2, b"x"), "a frame of 1 bytes on unknown queue 2"),
    (GUEST, frame(255, b"x"), "a frame of 1 bytes on unknown queue 255"),
    (HOST, frame(CONFIG, SPACE), "a frame of 8 bytes on unknown queue 241"),
    (
        HOST,
        frame(OUTPUT, size=stream.PAYLOAD_MAX + 1),
        f"a frame of {stream.PAYLOAD_MAX + 1} bytes on queue 1 is larger than 1052672",
    ),
    (
        GUEST,
        frame(INPUT, size=0xFFFFFFFF),
        "a frame of 4294967295 bytes on queue 0 is larger than 1052672",
    ),
    (GUEST, frame(CONFIG, SPACE[:7]), "a config space of 7 bytes, not 8 as in the hello"),
    (GUEST, frame(CONFIG, SPACE + b"x"), "a config space of 9 bytes, not 8 as in the hello"),
    (HOST, frame(CREDIT, b"1234567"), "a CREDIT of 7 bytes, not 8"),
    (HOST, frame(CREDIT, b"123456789"), "a CREDIT of 9 bytes, not 8"),
    (
        HOST,
        frame(CREDIT, struct.pack("<II", 1, 0)),
        "1 bytes were acknowledged, but 0 are under way in a window of 0",
    ),
    (HOST, frame(BYE, size=257), "a BYE of 257 bytes is larger than 256"),
    (HOST, hello(GUEST), "the peer says hello again: it was restarted"),
]


@pytest.mark.parametrize(("role", "data", "reason"), BAD_FRAMES)
def test_a_bad_frame_ends_the_stream(role: Role, data: bytes, reason: str) -> None:
    assert outcome(connected(role), [data]) == [reason]
    assert outcome(connected(role), cut(data)) == [reason]


@pytest.mark.parametrize("before", [b"", frame(OUTPUT, b"old"), hello(GUEST, answer=True)])
def test_the_hello_of_a_restarted_peer_ends_the_connection(before: bytes) -> None:
    host = connected(HOST)
    data = hello(GUEST, features=1) + frame(OUTPUT, b"new")
    with pytest.raises(stream.PeerRestarted):
        outcome_of_feed(host, before + data)


def test_an_answer_comes_once_and_first() -> None:
    answer = hello(GUEST, answer=True)
    for before in (answer, frame(OUTPUT, b"x")):
        with pytest.raises(stream.PeerRestarted):
            outcome_of_feed(connected(HOST), before + answer)
    for end in range(5, len(answer)):
        assert outcome(connected(HOST), [answer[:end]]) == [
            Closed("the stream ended inside a hello")
        ]
    assert outcome(connected(HOST), [hello(GUEST, answer=True, features=4)]) == [
        "features 0x4 were accepted but not offered (0x3 were)"
    ]


def outcome_of_feed(connection: Connection, data: bytes) -> None:
    connection.feed(data)
    list(events(connection))


# A whole conversation, cut


def conversation() -> bytes:
    """What a host sends in a session."""
    host = connected(HOST, window=WINDOW, peer_window=WINDOW)
    said = host.frame_header(INPUT, 40) + bytes(40)
    said += host.config(SPACE) + host.frame_header(INPUT, 0)
    host.feed(frame(OUTPUT, bytes(1019)))
    assert len(list(events(host))) == 1
    host.acknowledge(1019)
    said += host.credit()
    return hello(HOST, config=SPACE, window=WINDOW) + said + host.bye("done")


def listener() -> Connection:
    guest = Connection(GUEST, window=WINDOW)
    guest.hello(3)
    guest.feed(hello(HOST, config=SPACE, window=WINDOW))
    assert guest.next_event() is not None
    guest.frame_header(OUTPUT, 1019)
    return guest


def test_a_conversation_cut_at_every_offset_ends_with_what_was_whole() -> None:
    start = len(hello(HOST, config=SPACE))
    data = conversation()
    full = outcome(listener(), [data[start:]])
    assert full == [
        (INPUT, bytes(40)),
        ConfigChanged(SPACE),
        (INPUT, b""),
        CreditReceived(1024),
        Closed("done"),
    ]
    whole, ends = 0, [45, 58, 63, 76]
    for end in range(len(data) - start):
        whole += end in ends
        seen = outcome(listener(), [data[start : start + end]])
        assert seen == outcome(listener(), cut(data[start : start + end]))
        assert seen[:-1] == full[:whole]
        (last,) = seen[whole:]
        assert isinstance(last, Closed)
        begun = end - ([0, *ends])[whole]
        if not begun:
            assert last.reason == "the stream ended"
        elif begun < 5:
            assert last.reason == "the stream ended inside a frame's header"
        else:
            size = [40, 8, 0, 8, 4][whole]
            queue = [INPUT, CONFIG, INPUT, CREDIT, BYE][whole]
            assert last.reason == (
                f"the stream ended after {begun - 5} of {size} bytes of a frame on queue {queue}"
            )


def test_a_hello_cut_at_any_offset_is_reported() -> None:
    data = hello(HOST, config=SPACE)
    for end in range(len(data)):
        seen = outcome(Connection(GUEST), [data[:end]])
        assert seen == outcome(Connection(GUEST), cut(data[:end]))
        if end == 0:
            assert seen == [Closed("the stream ended before a hello")]
        elif end <= 8:
            after = data[:end]
            assert seen == [Closed(f"the stream ended before a hello, after {after!r}")]
        else:
            assert seen == [Closed("the stream ended inside a hello")]


def test_many_small_pieces_cost_no_more_than_their_number() -> None:
    host = connected(HOST)
    taken = 0
    payload = bytes(1 << 20)
    for piece in cut(frame(OUTPUT, payload), 16):
        host.feed(piece)
        taken += sum(1 for _ in events(host))
    assert taken == 1
    host.feed(b"".join(frame(OUTPUT, b"x") for _ in range(100_000)))
    assert sum(1 for _ in events(host)) == 100_000


# Credit


def acknowledged(end: Connection, size: int) -> bytes:
    """Hand a payload on; give the credit that is due."""
    end.acknowledge(size)
    return end.credit()


def test_without_a_window_there_is_always_room() -> None:
    host = connected(HOST)
    assert host.free == stream.UNLIMITED
    assert host.room == host.max_payload == stream.PAYLOAD_MAX
    host.frame_header(INPUT, stream.PAYLOAD_MAX)
    assert host.room == stream.PAYLOAD_MAX
    host.acknowledge(1 << 20)
    assert host.credit() == b""


def test_a_window_is_filled_to_the_last_byte_and_no_further() -> None:
    host = connected(HOST, peer_window=WINDOW)
    assert (host.free, host.max_payload, host.room) == (2048, 1019, 1019)
    with pytest.raises(LocalProtocolError, match="no room for 1020 bytes"):
        host.frame_header(INPUT, 1020)
    host.frame_header(INPUT, 1019)
    host.frame_header(INPUT, 1000)
    assert (host.free, host.room) == (19, 14)
    with pytest.raises(LocalProtocolError, match="no room for 15 bytes"):
        host.frame_header(INPUT, 15)
    host.frame_header(INPUT, 6)
    assert (host.free, host.room) == (8, 3)
    with pytest.raises(LocalProtocolError, match="no room for 8 bytes"):
        host.config(SPACE)
    host.feed(frame(CREDIT, struct.pack("<II", 1024, 0)))
    assert list(events(host)) == [CreditReceived(1024)]
    assert (host.free, host.room) == (1032, 1019)
    host.feed(frame(CREDIT, struct.pack("<II", 1017, 0)))
    assert outcome(host, []) == [
        "1017 bytes were acknowledged, but 1016 are under way in a window of 2048"
    ]


def test_acknowledgements_are_collected_up_to_half_of_the_window() -> None:
    host = connected(HOST, window=WINDOW)
    host.feed(b"".join(frame(OUTPUT, bytes(251)) for _ in range(7)))
    assert len(list(events(host))) == 7
    said = [acknowledged(host, 251) for _ in range(7)]
    credit = frame(CREDIT, struct.pack("<II", 1024, 0))
    assert said == [b"", b"", b"", credit, b"", b"", b""]
    with pytest.raises(LocalProtocolError):
        host.acknowledge(0)


def test_a_peer_with_little_room_gets_all_credit_at_once() -> None:
    host = connected(HOST, window=WINDOW)
    host.feed(frame(OUTPUT, bytes(1960)) + frame(OUTPUT, bytes(16)))
    assert len(list(events(host))) == 2
    assert acknowledged(host, 16) == frame(CREDIT, struct.pack("<II", 21, 0))
    assert host.credit() == b""
    assert acknowledged(host, 1960) == frame(CREDIT, struct.pack("<II", 1965, 0))


@pytest.mark.parametrize("window", [0, WINDOW])
def test_a_watched_frame_is_told_of_when_it_was_seen(window: int) -> None:
    guest = connected(GUEST, peer_window=window)
    host = connected(HOST, window=window)
    host.feed(guest.frame_header(OUTPUT, 3, watched=True) + b"abc")
    host.feed(guest.frame_header(OUTPUT, 3) + b"def")
    host.feed(guest.frame_header(OUTPUT, 3, watched=True) + b"ghi")
    came = [event for event in events(host) if isinstance(event, Frame)]
    assert [(event.queue, event.watched) for event in came] == [
        (OUTPUT, True),
        (OUTPUT, False),
        (OUTPUT, True),
    ]
    host.acknowledge(3, watched=True)
    guest.feed(host.credit())
    host.acknowledge(3)
    assert host.credit() == b""
    host.acknowledge(3, watched=True)
    guest.feed(host.credit())
    assert list(events(guest)) == [
        CreditReceived(8 if window else 0, 1),
        CreditReceived(16 if window else 0, 1),
    ]
    guest.feed(frame(CREDIT, struct.pack("<II", 0, 1)))
    assert outcome(guest, []) == ["1 frames were seen, but 0 are watched"]


def test_a_peer_that_overruns_the_window_is_refused_before_it_fills_memory() -> None:
    host = connected(HOST, window=WINDOW)
    assert outcome(host, [frame(OUTPUT, size=2044)]) == [
        "2049 bytes are under way in a window of 2048"
    ]
    host = connected(HOST, window=WINDOW)
    host.feed(frame(OUTPUT, bytes(2043)))
    assert len(list(events(host))) == 1
    assert outcome(host, [frame(OUTPUT)]) == ["2053 bytes are under way in a window of 2048"]


def test_a_config_change_is_counted_like_a_frame() -> None:
    guest = connected(GUEST, window=WINDOW)
    guest.feed(frame(CONFIG, SPACE) * 79)
    assert len(list(events(guest))) == 79
    assert sum(len(acknowledged(guest, 8)) for _ in range(79)) == 13
    guest = connected(GUEST, window=WINDOW)
    assert outcome(guest, [frame(CONFIG, SPACE) * 158])[-1] == (
        "2054 bytes are under way in a window of 2048"
    )


class Line:
    """One direction of a line without flow control."""

    def __init__(self, sender: Connection, receiver: Connection, queue: int, window: int) -> None:
        self.sender, self.receiver, self.queue, self.window = sender, receiver, queue, window
        self.under_way = b""
        self.sent = self.handed_on = b""
        self.waiting: list[bytes] = []  # buffers that the receiver has not handed on

    def send(self, size: int, seed: int) -> None:
        size = min(size, self.sender.room)
        if not size:
            return
        payload = random.Random(seed).randbytes(size)
        self.put(self.sender.frame_header(self.queue, size) + payload)
        self.sent += payload

    def put(self, data: bytes) -> None:
        self.under_way += data
        assert len(self.under_way) <= self.window + stream.EXCESS_MAX

    def arrive(self, size: int) -> None:
        data, self.under_way = self.under_way[:size], self.under_way[size:]
        self.receiver.feed(data)
        for event in events(self.receiver):
            if isinstance(event, Frame):
                self.waiting.append(bytes(event.payload))
        assert sum(map(len, self.waiting)) <= self.window

    def hand_on(self, back: Line) -> None:
        if self.waiting:
            payload = self.waiting.pop(0)
            self.handed_on += payload
            back.put(acknowledged(self.receiver, len(payload)))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["send", "arrive", "hand_on"]),
            st.booleans(),
            st.integers(1, 3000),
        ),
        max_size=120,
    ),
    st.sampled_from([1024, 1025, 2048, 4001]),
    st.sampled_from([1024, 2047]),
)
@settings(max_examples=examples(100))
def test_no_schedule_overruns_a_window_or_blocks_both_ends(
    steps: list[tuple[str, bool, int]], to_guest: int, to_host: int
) -> None:
    guest = connected(GUEST, window=to_guest, peer_window=to_host)
    host = connected(HOST, window=to_host, peer_window=to_guest)
    down, up = Line(host, guest, INPUT, to_guest), Line(guest, host, OUTPUT, to_host)
    for number, (what, upward, size) in enumerate(steps):
        line, back = (up, down) if upward else (down, up)
        if what == "send":
            line.send(size, number)
        elif what == "arrive":
            line.arrive(size)
        else:
            line.hand_on(back)
    # When all has arrived and was handed on, either end can send the largest frame again.
    while down.under_way or up.under_way or down.waiting or up.waiting:
        for line, back in ((up, down), (down, up)):
            line.arrive(1 << 20)
            line.hand_on(back)
    for line in (up, down):
        assert line.handed_on == line.sent
        assert line.sender.room == line.sender.max_payload


# Anything


@given(st.binary(max_size=200), st.booleans(), st.integers(1, 50))
@settings(max_examples=examples(100))
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes, met: bool, size: int) -> None:
    def made(role: Role) -> Connection:
        return connected(role, window=WINDOW) if met else Connection(role, noise_max=20)

    for role in Role:
        one, other = outcome(made(role), [data]), outcome(made(role), cut(data, size))
        if met:
            assert one == other
        assert len(one) == len(other) <= 1 + len(data)


@given(
    st.lists(
        st.tuples(st.sampled_from([INPUT, OUTPUT, CREDIT, CONFIG, BYE]), st.binary(max_size=12)),
        max_size=6,
    )
)
def test_no_frames_raise_anything_but_a_protocol_error(frames: list[tuple[int, bytes]]) -> None:
    data = b"".join(frame(queue, payload) for queue, payload in frames)
    for role in Role:
        one = outcome(connected(role, window=WINDOW, peer_window=WINDOW), [data])
        other = outcome(connected(role, window=WINDOW, peer_window=WINDOW), cut(data))
        assert one == other


# What our own caller may not do

WRONG_CALLS: list[tuple[Callable[[Connection], object], str]] = [
    (lambda c: c.hello(3), "said hello already"),
    (lambda c: c.frame_header(OUTPUT, 1), "a host does not send on queue 1"),
    (lambda c: c.frame_header(CREDIT, 1), "a host does not send on queue 240"),
    (lambda c: c.frame_header(INPUT, -1), "no room for -1 bytes on queue 0"),
    (
        lambda c: c.config(b"x"),
        "a host whose config space has 8 bytes cannot send one of 1",
    ),
]


@pytest.mark.parametrize(("call", "reason"), WRONG_CALLS)
def test_a_wrong_call_is_refused(call: Callable[[Connection], object], reason: str) -> None:
    with pytest.raises(LocalProtocolError) as refused:
        call(connected(HOST))
    assert str(refused.value) == reason


def test_nothing_but_a_hello_can_be_sent_before_both_have_said_hello() -> None:
    host = Connection(HOST)
    with pytest.raises(LocalProtocolError, match="not both"):
        _ = host.features
    host.hello(3, SPACE)
    assert host.room == 0
    with pytest.raises(LocalProtocolError, match="no room"):
        host.frame_header(INPUT, 0)


def test_a_guest_has_no_config_space() -> None:
    with pytest.raises(LocalProtocolError, match="8 bytes in a hello"):
        Connection(GUEST).hello(3, SPACE)
    with pytest.raises(LocalProtocolError, match="a guest whose"):
        connected(GUEST).config(SPACE)


@pytest.mark.parametrize("window", [-1, 1, 1023, 1 << 32])
def test_a_window_that_a_peer_would_refuse_is_not_granted(window: int) -> None:
    with pytest.raises(LocalProtocolError, match="a window is 1024 to"):
        Connection(GUEST, window=window)

"""The v8 dialect as tables: every message, both ends, and what may not be sent."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vconfs.protocol import events, v8
from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.events import Event, Message

ALL = v8.FEATURES
SEED = v8.F_SIZE | v8.F_MULTIPORT


def control(id: int, event: int, value: int, payload: bytes = b"") -> bytes:
    size = 4 + len(payload)
    return struct.pack("<IIIHH", id, 1, size, event, value) + payload


def read(end: v8.GuestEnd | v8.HostEnd, data: bytes) -> Event:
    return end.receive(v8.INPUT, memoryview(data))


#: (what the host end sends, its bytes, what the guest end makes of it)
TO_GUEST: list[tuple[Callable[[v8.HostEnd], Message | None], bytes, Event]] = [
    (lambda h: h.port_open(3, True), control(3, 0, 1), events.PortOpened(3, True)),
    (lambda h: h.port_open(3, False), control(3, 0, 0), events.PortOpened(3, False)),
    (lambda h: h.port_name(3, b"a.b"), control(3, 1, 1, b"a.b"), events.PortNamed(3, b"a.b")),
    (lambda h: h.port_name(3, b""), control(3, 1, 1), events.PortNamed(3, b"")),
    (lambda h: h.console_port(0), control(0, 2, 1), events.ConsolePort(0)),
    (lambda h: h.cache_buffers(3, True), control(3, 3, 1), events.CacheSet(3, True)),
    (lambda h: h.cache_buffers(3, False), control(3, 3, 0), events.CacheSet(3, False)),
    (lambda h: h.throttle(3, True), control(3, 4, 1), events.Throttled(3, True)),
    (lambda h: h.throttle(3, False), control(3, 4, 0), events.Throttled(3, False)),
    (lambda h: h.buffer_limit(3, 2), control(3, 5, 2), events.LimitSet(3, 2 << 20)),
    (lambda h: h.port_add(3), control(3, 6, 1), events.PortAdded(3)),
    (lambda h: h.port_remove(3), control(3, 7, 1), events.PortRemoved(3)),
    (
        lambda h: h.resize(0, 80, 25),
        control(0, 8, 1, b"\x50\x00\x19\x00"),
        events.Resized(0, 80, 25),
    ),
]
#: (what the guest end sends, its bytes, what the host end makes of it)
TO_HOST: list[tuple[Callable[[v8.GuestEnd], Message | None], bytes, Event]] = [
    (lambda g: g.port_open(3, True), control(3, 0, 1), events.PortOpened(3, True)),
    (lambda g: g.port_open(3, False), control(3, 0, 0), events.PortOpened(3, False)),
    (lambda g: g.port_ready(3), control(3, 1, 0), events.NameAsked(3)),
    (lambda g: g.throttle(3, True), control(3, 4, 1), events.Throttled(3, True)),
    (lambda g: g.throttle(3, False), control(3, 4, 0), events.Throttled(3, False)),
]


@pytest.mark.parametrize(("send", "data", "event"), TO_GUEST)
def test_what_the_host_end_sends_the_guest_end_reads(
    send: Callable[[v8.HostEnd], Message | None], data: bytes, event: Event
) -> None:
    assert send(v8.HostEnd(ALL)) == Message(v8.INPUT, data)
    assert read(v8.GuestEnd(ALL), data) == event


@pytest.mark.parametrize(("send", "data", "event"), TO_HOST)
def test_what_the_guest_end_sends_the_host_end_reads(
    send: Callable[[v8.GuestEnd], Message | None], data: bytes, event: Event
) -> None:
    assert send(v8.GuestEnd(ALL)) == Message(v8.OUTPUT, data)
    assert read(v8.HostEnd(ALL), data) == event


@pytest.mark.parametrize("data", [data for _, data, _ in TO_GUEST + TO_HOST])
def test_a_message_cut_anywhere_is_ignored(data: bytes) -> None:
    """A defect of the v8 patch: short control packets were not checked."""
    for length in range(16):
        for end in (v8.GuestEnd(ALL), v8.HostEnd(ALL)):
            assert isinstance(read(end, data[:length]), events.Ignored)


@pytest.mark.parametrize("length", range(4))
def test_a_resize_without_its_size_is_ignored(length: int) -> None:
    event = read(v8.GuestEnd(ALL), control(0, 8, 1, bytes(length)))
    assert event == events.Ignored(0, f"a RESIZE with {length} bytes of size is too short")


def test_data_carries_the_size_of_the_whole_request_in_its_first_buffer() -> None:
    for sender, receiver in (
        (v8.GuestEnd(ALL), v8.HostEnd(ALL)),
        (v8.HostEnd(ALL), v8.GuestEnd(ALL)),
    ):
        first = sender.data_header(7, 10) + b"12345"
        second = sender.data_header(7, 0) + b"67890"
        assert first == struct.pack("<III", 7, 0, 10) + b"12345"
        one, two = read(receiver, first), read(receiver, second)
        assert isinstance(one, events.Data)
        assert isinstance(two, events.Data)
        assert (one.id, bytes(one.data), one.size) == (7, b"12345", 10)
        assert (two.id, bytes(two.data), two.size) == (7, b"67890", 0)


def test_all_ports_share_two_queues() -> None:
    guest, host = v8.GuestEnd(ALL), v8.HostEnd(ALL)
    assert guest.queues == host.queues == 2
    assert {guest.data_queue(id) for id in (0, 5)} == {host.receive_queue(0)} == {v8.OUTPUT}
    assert {host.data_queue(id) for id in (0, 5)} == {guest.receive_queue(0)} == {v8.INPUT}
    assert guest.port_of(v8.INPUT) is None


def test_what_the_seed_has_no_message_for_is_neither_sent_nor_understood_without_its_feature() -> (
    None
):
    host, guest = v8.HostEnd(SEED), v8.GuestEnd(SEED)
    for send, data, _ in TO_GUEST[10:]:
        assert send(host) is None
        event = read(guest, data)
        assert isinstance(event, events.Ignored)
        assert "unknown control event" in event.reason


@pytest.mark.parametrize("event", [9, 255, 65535])
def test_an_unknown_event_is_ignored(event: int) -> None:
    for end in (v8.GuestEnd(ALL), v8.HostEnd(ALL)):
        assert read(end, control(3, event, 1)) == events.Ignored(
            3, f"unknown control event {event}"
        )


@pytest.mark.parametrize("event", [2, 3, 5, 6, 7, 8])
def test_the_guest_cannot_send_what_is_the_hosts(event: int) -> None:
    assert isinstance(read(v8.HostEnd(ALL), control(3, event, 1, bytes(4))), events.Ignored)


def test_console_port_with_value_zero_says_nothing() -> None:
    assert isinstance(read(v8.GuestEnd(ALL), control(0, 2, 0)), events.Ignored)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        (b"", b""),
        (b"\0", b""),
        (b"a", b"a"),
        (b"org.example\0", b"org.example"),
        (b"two\0\0", b"two\0"),  # one trailing NUL is stripped
        (b"a/b", b"a/b"),
        (b"..", b".."),
        (b"in\0side", b"in\0side"),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"n" * v8.NAME_MAX, b"n" * v8.NAME_MAX),
        (b"n" * v8.NAME_MAX + b"\0", b"n" * v8.NAME_MAX),
    ],
)
def test_names(sent: bytes, name: bytes) -> None:
    assert read(v8.GuestEnd(ALL), control(3, 1, 1, sent)) == events.PortNamed(3, name)


@pytest.mark.parametrize("length", [v8.NAME_MAX + 1, 65536])
def test_a_name_that_is_too_long_is_ignored(length: int) -> None:
    event = read(v8.GuestEnd(ALL), control(3, 1, 1, b"n" * length))
    assert event == events.Ignored(3, f"a name of {length} bytes is longer than 4080")


def test_names_and_limits_that_cannot_be_sent_are_the_callers_mistake() -> None:
    with pytest.raises(LocalProtocolError, match="at most 4080 bytes"):
        v8.HostEnd(ALL).port_name(3, bytes(v8.NAME_MAX + 1))
    for limit in (0, -1, 65536):
        with pytest.raises(LocalProtocolError, match="1 to 65535 MiB"):
            v8.HostEnd(ALL).buffer_limit(3, limit)


# --- the config space ---------------------------------------------------------------------


def config(ports: int, cols: int = 0, rows: int = 0) -> bytes:
    return struct.pack("<HHI", cols, rows, ports)


def test_the_config_names_the_ports_and_more_of_them_later() -> None:
    """A defect of the v8 patch: hot-added ports got the wrong numbers."""
    guest = v8.GuestEnd(SEED)
    assert guest.receive_config(config(2)) == [events.PortAdded(0), events.PortAdded(1)]
    assert guest.receive_config(config(5)) == [events.PortAdded(id) for id in (2, 3, 4)]
    assert guest.receive_config(config(6)) == [events.PortAdded(5)]


def test_port_0_is_always_there() -> None:
    assert v8.GuestEnd(SEED).receive_config(config(0)) == [events.PortAdded(0)]


def test_the_same_number_means_that_port_0_may_have_another_name() -> None:
    guest = v8.GuestEnd(SEED)
    guest.receive_config(config(2))
    assert guest.receive_config(config(2)) == [events.NameStale(0)]


def test_a_smaller_number_takes_the_last_ports_away() -> None:
    guest = v8.GuestEnd(SEED)
    guest.receive_config(config(4))
    assert guest.receive_config(config(2)) == [events.PortRemoved(2), events.PortRemoved(3)]
    assert guest.receive_config(config(3)) == [events.PortAdded(2)]


@pytest.mark.parametrize("ports", [v8.PORTS_MAX + 1, 2**32 - 1])
def test_an_absurd_number_of_ports_is_ignored(ports: int) -> None:
    guest = v8.GuestEnd(SEED)
    guest.receive_config(config(2))
    assert guest.receive_config(config(ports)) == [
        events.Ignored(None, f"{ports} ports are more than {v8.PORTS_MAX}")
    ]
    assert guest.receive_config(config(3)) == [events.PortAdded(2)]


@pytest.mark.parametrize("length", range(8))
def test_a_short_config_space_is_ignored(length: int) -> None:
    assert v8.GuestEnd(SEED).receive_config(bytes(length)) == [
        events.Ignored(None, f"a config space of {length} bytes is too short")
    ]


def test_the_size_of_the_console_is_told_when_it_changes() -> None:
    guest = v8.GuestEnd(SEED)
    assert events.Resized(0, 80, 25) in guest.receive_config(config(1, 80, 25))
    assert guest.receive_config(config(1, 80, 25)) == [events.NameStale(0)]
    assert events.Resized(0, 132, 43) in guest.receive_config(config(1, 132, 43))
    assert v8.GuestEnd(v8.F_MULTIPORT).receive_config(config(1, 80, 25)) == [events.PortAdded(0)]


def test_the_host_end_writes_the_config_that_the_guest_end_reads() -> None:
    assert v8.HostEnd(ALL).config(3, 80, 25) == config(3, 80, 25)


# --- without MULTIPORT --------------------------------------------------------------------


def test_without_multiport_there_is_one_console_and_nothing_but_data() -> None:
    guest, host = v8.GuestEnd(v8.F_SIZE), v8.HostEnd(v8.F_SIZE)
    assert guest.receive_config(config(9, 80, 25)) == [
        events.PortAdded(0),
        events.ConsolePort(0),
        events.PortOpened(0, True),
        events.Resized(0, 80, 25),
    ]
    assert guest.receive_config(config(9, 80, 25)) == []
    assert guest.header_size == 0
    assert guest.data_header(0, 5) == b""
    assert read(guest, b"hi") == events.Data(0, memoryview(b"hi"))
    for send, _, _ in TO_GUEST:
        assert send(host) is None
    for ask, _, _ in TO_HOST:
        assert ask(guest) is None


def test_a_v8_device_waits_for_no_ready_message() -> None:
    assert v8.GuestEnd(ALL).device_ready() is None


# --- anything at all ----------------------------------------------------------------------

_EVENTS = (*tuple(type(event) for _, _, event in TO_GUEST + TO_HOST), events.Data, events.Ignored)


@given(st.binary(max_size=64), st.sampled_from([ALL, SEED, v8.F_MULTIPORT, 0]))
def test_random_buffers_always_give_an_event(data: bytes, features: int) -> None:
    for end in (v8.GuestEnd(features), v8.HostEnd(features)):
        assert isinstance(read(end, data), _EVENTS)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 20),
    st.integers(0, 2**16 - 1),
    st.binary(max_size=8),
)
def test_random_control_packets_always_give_an_event(
    id: int, flags: int, event: int, value: int, payload: bytes
) -> None:
    data = struct.pack("<IIIHH", id, flags | 1, 0, event, value) + payload
    for end in (v8.GuestEnd(ALL), v8.HostEnd(ALL)):
        assert isinstance(read(end, data), _EVENTS)

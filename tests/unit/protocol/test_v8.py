"""The v8 dialect as tables: every message, both ends, and messages that may not be sent.

What holds for both dialects is in test_dialects.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from vconfs.protocol import events, v8
from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.events import Event, Message

ALL = v8.FEATURES
SEED = v8.F_SIZE | v8.F_MULTIPORT


def control(port_id: int, event: int, value: int, payload: bytes = b"") -> bytes:
    size = 4 + len(payload)
    return struct.pack("<IIIHH", port_id, 1, size, event, value) + payload


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
    (lambda h: h.buffer_limit(3, 65535), control(3, 5, 65535), events.LimitSet(3, 65535 << 20)),
]
#: The same, for a guest that has PORT_EVENTS.
EXTENSIONS: list[tuple[Callable[[v8.HostEnd], Message | None], bytes, Event]] = [
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


@pytest.mark.parametrize(("send", "data", "event"), TO_GUEST + EXTENSIONS)
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


def test_messages_of_the_seed_need_no_extension() -> None:
    for send, data, event in TO_GUEST:
        assert send(v8.HostEnd(SEED)) == Message(v8.INPUT, data)
        assert read(v8.GuestEnd(SEED), data) == event


@pytest.mark.parametrize("data", [data for _, data, _ in TO_GUEST + EXTENSIONS + TO_HOST])
def test_short_control_packets_are_checked(data: bytes) -> None:
    """A defect of the v8 patch: they were not."""
    for end in (v8.GuestEnd(ALL), v8.HostEnd(ALL)):
        for length in range(12):
            assert read(end, data[:length]) == events.Ignored(
                None, f"a buffer of {length} bytes has no complete header"
            )
        (port_id,) = struct.unpack_from("<I", data)
        for length in range(4):
            assert read(end, data[: 12 + length]) == events.Ignored(
                port_id, f"a control packet of {length} bytes is too short"
            )


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


@pytest.mark.parametrize("size", [0, 1, 4, 5, 2**31, 2**32 - 1])
@pytest.mark.parametrize("flags", [0, 2, 0xFFFFFFFE])
def test_unknown_flags_and_absurd_sizes_of_data_change_nothing(size: int, flags: int) -> None:
    data = struct.pack("<III", 3, flags, size) + b"data"
    for end in (v8.GuestEnd(ALL), v8.HostEnd(ALL)):
        assert read(end, data) == events.Data(3, memoryview(b"data"), size)


@pytest.mark.parametrize("size", [0, 3, 5, 2**32 - 1])
@pytest.mark.parametrize("flags", [1, 3, 0xFFFFFFFF])
def test_unknown_flags_and_absurd_sizes_of_control_packets_change_nothing(
    size: int, flags: int
) -> None:
    data = struct.pack("<IIIHH", 3, flags, size, 0, 1)
    for end in (v8.GuestEnd(ALL), v8.HostEnd(ALL)):
        assert read(end, data) == events.PortOpened(3, True)


@pytest.mark.parametrize("port_id", [99, 2**31, 2**32 - 1])
def test_an_unknown_port_id_stops_nothing(port_id: int) -> None:
    """A defect of the v8 patch: it stopped the receive loop."""
    for end in (v8.GuestEnd(ALL), v8.HostEnd(ALL)):
        assert read(end, struct.pack("<III", port_id, 0, 1) + b"x") == events.Data(
            port_id, memoryview(b"x"), 1
        )
        assert read(end, control(port_id, 0, 1)) == events.PortOpened(port_id, True)
        assert read(end, control(0, 0, 1)) == events.PortOpened(0, True)


def test_cache_buffers_0_is_not_ignored() -> None:
    """A defect of the v8 patch: it was, so that caching could not be taken back."""
    assert read(v8.GuestEnd(ALL), control(3, 3, 0)) == events.CacheSet(3, False)


def test_a_second_name_leaves_nothing_of_the_first() -> None:
    """A defect of the v8 patch: the first one leaked."""
    guest = v8.GuestEnd(ALL)
    before = dict(vars(guest))
    for name in (b"first", b"second", b""):
        assert read(guest, control(3, 1, 1, name)) == events.PortNamed(3, name)
    assert vars(guest) == before


def test_ids_that_a_port_can_have() -> None:
    guest = v8.GuestEnd(ALL)
    assert read(guest, control(v8.PORTS_MAX - 1, 6, 1)) == events.PortAdded(v8.PORTS_MAX - 1)
    for port_id in (v8.PORTS_MAX, 2**32 - 1):
        assert read(guest, control(port_id, 6, 1)) == events.Ignored(
            port_id, f"port id {port_id} is too large"
        )


def test_all_ports_share_two_queues() -> None:
    guest, host = v8.GuestEnd(ALL), v8.HostEnd(ALL)
    assert guest.queues == host.queues == 2
    assert (
        {guest.data_queue(port_id) for port_id in (0, 5)} == {host.receive_queue(0)} == {v8.OUTPUT}
    )
    assert (
        {host.data_queue(port_id) for port_id in (0, 5)} == {guest.receive_queue(0)} == {v8.INPUT}
    )
    assert guest.port_of(v8.INPUT) is None


def test_port_events_are_for_those_that_negotiated_them() -> None:
    """One side alone is not enough: nothing is sent, and what comes all the same is ignored."""
    for send, data, _ in EXTENSIONS:
        port_id, event = struct.unpack_from("<I8xH", data)
        for features in (SEED, v8.F_PORT_EVENTS, 0):
            assert send(v8.HostEnd(features)) is None
        assert read(v8.GuestEnd(SEED), data) == events.Ignored(
            port_id, f"unknown control event {event}"
        )


@pytest.mark.parametrize("event", [9, 255, 65535])
def test_an_unknown_event_is_ignored(event: int) -> None:
    for end in (v8.GuestEnd(ALL), v8.HostEnd(ALL)):
        assert read(end, control(3, event, 1)) == events.Ignored(
            3, f"unknown control event {event}"
        )


@pytest.mark.parametrize("event", [2, 3, 5, 6, 7, 8])
def test_the_guest_cannot_send_messages_of_the_host(event: int) -> None:
    assert read(v8.HostEnd(ALL), control(3, event, 1, bytes(4))) == events.Ignored(
        3, f"unknown control event {event}"
    )


def test_console_port_with_value_zero_says_nothing() -> None:
    assert read(v8.GuestEnd(ALL), control(0, 2, 0)) == events.Ignored(
        0, "CONSOLE_PORT with value 0"
    )


@pytest.mark.parametrize("value", [1, 2, 65535])
def test_any_value_but_zero_is_true(value: int) -> None:
    guest = v8.GuestEnd(ALL)
    for event, meaning in {
        0: events.PortOpened(3, True),
        2: events.ConsolePort(3),
        3: events.CacheSet(3, True),
        4: events.Throttled(3, True),
    }.items():
        assert read(guest, control(3, event, value)) == meaning


def test_a_limit_of_0_means_no_limit() -> None:
    assert read(v8.GuestEnd(ALL), control(3, 5, 0)) == events.LimitSet(3, 0)


@pytest.mark.parametrize("limit", [0, -1, 65536])
def test_a_limit_that_cannot_be_sent_is_the_callers_mistake(limit: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"1 to 65535 MiB, not {limit}"):
        v8.HostEnd(ALL).buffer_limit(3, limit)


# --- the config space ---------------------------------------------------------------------


def config(ports: int, cols: int = 0, rows: int = 0) -> bytes:
    return struct.pack("<HHI", cols, rows, ports)


def test_hot_added_ports_get_the_next_numbers() -> None:
    """A defect of the v8 patch: they got wrong ones."""
    guest = v8.GuestEnd(SEED)
    assert guest.receive_config(config(2)) == [events.PortAdded(0), events.PortAdded(1)]
    assert guest.receive_config(config(5)) == [events.PortAdded(port_id) for port_id in (2, 3, 4)]
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


def test_as_many_ports_as_there_can_be() -> None:
    added = v8.GuestEnd(SEED).receive_config(config(v8.PORTS_MAX))
    assert added == [events.PortAdded(port_id) for port_id in range(v8.PORTS_MAX)]


@pytest.mark.parametrize("ports", [v8.PORTS_MAX + 1, 2**32 - 1])
def test_an_absurd_number_of_ports_is_ignored(ports: int) -> None:
    guest = v8.GuestEnd(SEED)
    guest.receive_config(config(2))
    assert guest.receive_config(config(ports)) == [
        events.Ignored(None, f"{ports} ports are more than {v8.PORTS_MAX}")
    ]
    assert guest.receive_config(config(3)) == [events.PortAdded(2)]


def test_the_size_of_the_console_is_sent_when_it_changes() -> None:
    guest = v8.GuestEnd(SEED)
    assert events.Resized(0, 80, 25) in guest.receive_config(config(1, 80, 25))
    assert guest.receive_config(config(1, 80, 25)) == [events.NameStale(0)]
    assert events.Resized(0, 132, 43) in guest.receive_config(config(1, 132, 43))
    assert v8.GuestEnd(v8.F_MULTIPORT).receive_config(config(1, 80, 25)) == [events.PortAdded(0)]


def test_the_host_end_writes_the_config_that_the_guest_end_reads() -> None:
    assert v8.HostEnd(ALL).config(3, 80, 25) == config(3, 80, 25)


def test_a_v8_device_waits_for_no_ready_message() -> None:
    assert v8.GuestEnd(ALL).device_ready() is None


def test_there_is_no_way_around_the_queues() -> None:
    assert v8.GuestEnd(v8.FEATURES).emergency_writes(b"help") == []

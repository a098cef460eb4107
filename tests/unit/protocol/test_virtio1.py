"""The standard's dialect as tables: every message, both ends, and messages that may not be sent.

What holds for both dialects is in test_dialects.py.
"""

from __future__ import annotations

import select
import struct
from collections.abc import Callable
from itertools import permutations

import pytest
import trio

from tests.unit.ends.test_ends import spec, taken
from vconfs.guest.port import Opener, PortOptions
from vconfs.protocol import events, virtio1
from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.events import Event, Message
from vconfs.testing import Puppet, open_ends

ALL = virtio1.FEATURES


def control(port_id: int, event: int, value: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IHH", port_id, event, value) + payload


def read(end: virtio1.GuestEnd | virtio1.HostEnd, data: bytes) -> Event:
    queue = 2 if isinstance(end, virtio1.GuestEnd) else 3
    return end.receive(queue, memoryview(data))


#: (what the host end sends, its bytes, what the guest end makes of it)
TO_GUEST: list[tuple[Callable[[virtio1.HostEnd], Message | None], bytes, Event]] = [
    (lambda h: h.port_add(3), control(3, 1, 1), events.PortAdded(3)),
    (lambda h: h.port_remove(3), control(3, 2, 1), events.PortRemoved(3)),
    (lambda h: h.console_port(0), control(0, 4, 1), events.ConsolePort(0)),
    (lambda h: h.resize(0, 80, 25), control(0, 5, 1, b"P\0\x19\0"), events.Resized(0, 80, 25)),
    (lambda h: h.port_open(3, True), control(3, 6, 1), events.PortOpened(3, True)),
    (lambda h: h.port_open(3, False), control(3, 6, 0), events.PortOpened(3, False)),
    (lambda h: h.port_name(3, b"a.b"), control(3, 7, 1, b"a.b"), events.PortNamed(3, b"a.b")),
]
#: (what the guest end sends, its bytes, what the host end makes of it)
TO_HOST: list[tuple[Callable[[virtio1.GuestEnd], Message | None], bytes, Event]] = [
    (lambda g: g.device_ready(), control(0xFFFFFFFF, 0, 1), events.DeviceReady(True)),
    (lambda g: g.port_ready(3), control(3, 3, 1), events.PortReady(3, True)),
    (lambda g: g.port_open(3, True), control(3, 6, 1), events.PortOpened(3, True)),
    (lambda g: g.port_open(3, False), control(3, 6, 0), events.PortOpened(3, False)),
]


@pytest.mark.parametrize(("send", "data", "event"), TO_GUEST)
def test_what_the_host_end_sends_the_guest_end_reads(
    send: Callable[[virtio1.HostEnd], Message | None], data: bytes, event: Event
) -> None:
    assert send(virtio1.HostEnd(ALL)) == Message(2, data)
    assert read(virtio1.GuestEnd(ALL), data) == event


@pytest.mark.parametrize(("send", "data", "event"), TO_HOST)
def test_what_the_guest_end_sends_the_host_end_reads(
    send: Callable[[virtio1.GuestEnd], Message | None], data: bytes, event: Event
) -> None:
    assert send(virtio1.GuestEnd(ALL)) == Message(3, data)
    assert read(virtio1.HostEnd(ALL), data) == event


@pytest.mark.parametrize("data", [data for _, data, _ in TO_GUEST + TO_HOST])
def test_short_control_messages_are_checked(data: bytes) -> None:
    for end in (virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)):
        for length in range(8):
            assert read(end, data[:length]) == events.Ignored(
                None, f"a control message of {length} bytes is too short"
            )


@pytest.mark.parametrize("port_id", [0, 5, 99, 0xFFFFFFFF])
def test_device_ready_concerns_no_port_whatever_its_id(port_id: int) -> None:
    host = virtio1.HostEnd(ALL)
    assert read(host, control(port_id, 0, 1)) == events.DeviceReady(True)
    assert read(host, control(port_id, 0, 0)) == events.DeviceReady(False)


def test_a_guest_that_could_not_take_a_port_up() -> None:
    assert read(virtio1.HostEnd(ALL), control(3, 3, 0)) == events.PortReady(3, False)


def test_a_port_is_introduced_in_any_order_and_more_than_once() -> None:
    """NAME before PORT_READY, OPEN before CONSOLE_PORT, PORT_ADD again: hosts differ."""
    messages = {
        control(3, 1, 0): events.PortAdded(3),
        control(3, 7, 1, b"name"): events.PortNamed(3, b"name"),
        control(3, 6, 1): events.PortOpened(3, True),
        control(3, 4, 1): events.ConsolePort(3),
    }
    guest = virtio1.GuestEnd(ALL)
    for order in permutations(messages):
        for message in (*order, *order):
            assert read(guest, message) == messages[message]


@pytest.mark.parametrize("event", [0, 3])
def test_the_host_cannot_send_messages_of_the_guest(event: int) -> None:
    assert read(virtio1.GuestEnd(ALL), control(3, event, 1)) == events.Ignored(
        3, f"unknown control event {event}"
    )


@pytest.mark.parametrize("event", [1, 2, 4, 5, 7])
def test_the_guest_cannot_send_messages_of_the_host(event: int) -> None:
    assert read(virtio1.HostEnd(ALL), control(3, event, 1, bytes(4))) == events.Ignored(
        3, f"unknown control event {event}"
    )


def test_console_port_with_value_zero_says_nothing() -> None:
    assert read(virtio1.GuestEnd(ALL), control(0, 4, 0)) == events.Ignored(
        0, "CONSOLE_PORT with value 0"
    )


@pytest.mark.parametrize("length", range(4))
def test_a_resize_without_its_size_is_ignored(length: int) -> None:
    assert read(virtio1.GuestEnd(ALL), control(0, 5, 1, bytes(length))) == events.Ignored(
        0, f"a RESIZE with {length} bytes of size is too short"
    )


def test_a_resize_in_the_other_order() -> None:
    message = control(0, 5, 1, struct.pack("<HH", 25, 80))
    assert read(virtio1.GuestEnd(ALL, resize_rows_first=True), message) == events.Resized(0, 80, 25)
    assert virtio1.HostEnd(ALL, resize_rows_first=True).resize(0, 80, 25) == Message(2, message)
    assert read(virtio1.GuestEnd(ALL), message) == events.Resized(0, 25, 80)


def test_queue_numbers() -> None:
    guest, host = virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)
    assert guest.queues == host.queues == 64
    for port_id, (to_guest, to_host) in {0: (0, 1), 1: (4, 5), 30: (62, 63)}.items():
        assert host.data_queue(port_id) == guest.receive_queue(port_id) == to_guest
        assert guest.data_queue(port_id) == host.receive_queue(port_id) == to_host
        assert guest.port_of(to_guest) == guest.port_of(to_host) == port_id
        assert guest.receive(to_guest, memoryview(b"hi")) == events.Data(port_id, memoryview(b"hi"))
    assert guest.port_of(2) is None
    assert guest.port_of(3) is None


@pytest.mark.parametrize("port_id", [31, 32, 2**32 - 1])
def test_ids_beyond_the_devices_ports_are_ignored(port_id: int) -> None:
    guest, host = virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)
    guest.receive_config(host.config(1))
    beyond = events.Ignored(port_id, f"port id {port_id} of a device with 31 ports")
    for event in (1, 2, 4, 5, 6, 7):
        assert read(guest, control(port_id, event, 1, bytes(4))) == beyond
    for event in (3, 6):
        assert read(host, control(port_id, event, 1)) == beyond


def test_no_messages_are_sent_about_ports_that_the_other_end_cannot_have() -> None:
    guest, host = virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL, max_ports=4)
    guest.receive_config(host.config(1))
    assert guest.max_ports == 4
    assert guest.queues == host.queues == 10
    assert host.port_add(3) == Message(2, control(3, 1, 1))
    assert host.port_add(4) is host.port_remove(4) is host.port_name(4, b"name") is None
    assert host.console_port(4) is host.resize(4, 80, 25) is host.port_open(4, True) is None
    assert guest.port_ready(4) is guest.port_open(4, True) is None


@pytest.mark.parametrize("ports", [0, -1, virtio1.PORTS_MAX + 1])
def test_an_impossible_device_is_the_callers_mistake(ports: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"1 to {virtio1.PORTS_MAX} ports, not {ports}"):
        virtio1.HostEnd(ALL, max_ports=ports)


@pytest.mark.parametrize("event", [8, 100, 65535])
def test_unknown_events_are_ignored(event: int) -> None:
    for end in (virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)):
        assert read(end, control(3, event, 1)) == events.Ignored(
            3, f"unknown control event {event}"
        )


@pytest.mark.parametrize(
    ("ports", "bounded"),
    [(0, 1), (virtio1.PORTS_MAX + 1, virtio1.PORTS_MAX), (2**32 - 1, virtio1.PORTS_MAX)],
)
def test_an_absurd_number_of_ports_is_bounded(ports: int, bounded: int) -> None:
    guest = virtio1.GuestEnd(ALL)
    config = struct.pack("<HHI", 0, 0, ports)
    assert guest.receive_config(config) == [
        events.Ignored(None, f"{ports} ports are not 1 to {virtio1.PORTS_MAX}")
    ]
    assert guest.max_ports == bounded
    assert guest.receive_config(config) == []


@pytest.mark.parametrize("ports", [0, 1, 7, 9, 2**32 - 1])
def test_the_number_of_ports_cannot_change(ports: int) -> None:
    guest = virtio1.GuestEnd(ALL)
    assert guest.receive_config(struct.pack("<HHI", 0, 0, 8)) == []
    assert guest.receive_config(struct.pack("<HHI", 0, 0, ports)) == [
        events.Ignored(None, f"max_nr_ports is {ports} and was 8")
    ]
    assert guest.max_ports == 8
    assert read(guest, control(7, 1, 1)) == events.PortAdded(7)


def test_the_config_space_of_the_host_end() -> None:
    host = virtio1.HostEnd(ALL, max_ports=5)
    assert host.config(2, 80, 25) == struct.pack("<HHII", 80, 25, 5, 0)
    assert virtio1.HostEnd(0, max_ports=5).config(1) == struct.pack("<HHII", 0, 0, 1, 0)


def test_an_emergency_write_is_a_byte_from_port_0() -> None:
    host = virtio1.HostEnd(ALL | virtio1.F_EMERG_WRITE)
    for data in (b"A", b"A\0\0\0", b"ABCD"):
        assert host.receive_config_write(8, data) == events.Data(0, memoryview(b"A"))


@pytest.mark.parametrize(
    ("features", "data", "writes"),
    [
        (virtio1.F_EMERG_WRITE, b"Hi", [(8, b"H\0\0\0"), (8, b"i\0\0\0")]),
        (ALL | virtio1.F_EMERG_WRITE, b"\xff", [(8, b"\xff\0\0\0")]),
        (ALL | virtio1.F_EMERG_WRITE, b"", []),
        (ALL, b"Hi", []),
    ],
)
def test_what_the_guest_writes_in_an_emergency(
    features: int, data: bytes, writes: list[tuple[int, bytes]]
) -> None:
    guest, host = virtio1.GuestEnd(features), virtio1.HostEnd(features)
    for form in (data, bytearray(data), memoryview(data)):
        found = guest.emergency_writes(form)
        assert [(write.offset, write.data) for write in found] == writes
        read_back = [host.receive_config_write(write.offset, write.data) for write in found]
        assert read_back == [events.Data(0, memoryview(data)[i : i + 1]) for i in range(len(found))]


@pytest.mark.parametrize(("offset", "data"), [(8, b""), (0, b"A"), (9, b"A"), (12, b"A")])
def test_other_writes_to_the_config_space_are_ignored(offset: int, data: bytes) -> None:
    assert virtio1.HostEnd(ALL).receive_config_write(offset, data) == events.Ignored(
        None, f"{len(data)} bytes written to the config space at {offset}"
    )


def test_the_config_has_the_new_size_of_the_console() -> None:
    guest, host = virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)
    read(guest, control(1, 1, 1))
    assert guest.receive_config(host.config(1, 80, 25)) == []  # there is no port 0 yet
    read(guest, control(0, 1, 1))
    assert guest.receive_config(host.config(1, 80, 25)) == [events.Resized(0, 80, 25)]
    assert guest.receive_config(host.config(1, 80, 25)) == []
    assert guest.receive_config(host.config(1, 90, 25)) == [events.Resized(0, 90, 25)]
    read(guest, control(0, 2, 1))
    assert guest.receive_config(host.config(1, 100, 25)) == []


def test_messages_that_this_dialect_does_not_have() -> None:
    host, guest = virtio1.HostEnd(ALL), virtio1.GuestEnd(ALL)
    assert host.cache_buffers(1, True) is host.buffer_limit(1, 1) is host.throttle(1, True) is None
    assert guest.throttle(1, True) is None
    assert guest.data_header(1, 100) == b""


# --- both ends, over real rings -----------------------------------------------------------


async def test_both_ends_together() -> None:
    puppet = Puppet()
    specs = [spec(b"con", console=True), spec(b"org.example.0", puppet)]
    async with open_ends(specs, dialect="virtio1") as ends:
        assert [ends.ports[port_id].name for port_id in range(2)] == [b"con", b"org.example.0"]
        assert ends.ports[0].console
        port = ends.ports[1]
        assert port.write_nowait(b"to the host") == 11
        assert await puppet.port.receive() == b"to the host"
        await puppet.port.send(b"last words")
        puppet.port.disconnect()
        assert taken(port.read_nowait(100)) == b"last words"
        assert port.read_nowait(100) == []
        with pytest.raises(trio.WouldBlock):
            port.write_nowait(b"nobody is there")
        late = await ends.host.add(spec(b"late"))
        assert ends.ports[late.id].name == b"late"
        ends.host.remove(late.id)
        assert late.id not in ends.ports
        assert ends.manager.ignored == 0


async def test_back_pressure_is_the_ring_both_ways() -> None:
    puppet = Puppet()
    async with open_ends([spec(puppet=puppet, host_limit=1000)], dialect="virtio1") as ends:
        port = ends.ports[0]
        written = 0
        while port.poll() & select.POLLOUT:
            written += port.write_nowait(bytes(60_000))
        assert written < 1 << 26
        got = 0
        while got < written:
            got += len(await puppet.port.receive())
        assert port.write_nowait(b"again") == 5
        sent = 0
        while step := puppet.port.send_nowait(bytes(60_000)):
            sent += step
        assert sent < 1 << 26
        read_back = 0
        while read_back < sent:
            read_back += len(taken(port.read_nowait(1 << 20)))
        assert puppet.port.send_nowait(b"again") == 5


async def test_a_hang_up_waits_for_the_data_that_it_overtook() -> None:
    puppet = Puppet()
    options = PortOptions(limit=100_000)
    async with open_ends([spec(puppet=puppet)], options, dialect="virtio1") as ends:
        port, sent, got = ends.ports[0], 0, 0
        while step := puppet.port.send_nowait(bytes(60_000)):
            sent += step
        puppet.port.disconnect()
        while size := len(taken(port.read_nowait(1 << 20))):
            got += size
    assert got == sent


async def test_a_close_waits_for_the_data_that_it_overtook() -> None:
    puppet = Puppet()
    puppet.keeps_sessions = True
    async with open_ends([spec(puppet=puppet, host_limit=1000)], dialect="virtio1") as ends:
        opener = Opener(1)
        ends.ports[0].open(opener)
        sent = sum(ends.ports[0].write_nowait(bytes(60_000)) for _ in range(5))
        ends.ports[0].close(opener)
        got = 0
        while data := await puppet.port.receive():
            got += len(data)
    assert got == sent

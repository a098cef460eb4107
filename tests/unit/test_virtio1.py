"""The standard's dialect as tables: every message, both ends, and what may not be sent."""

from __future__ import annotations

import select
import struct
from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from vconfs.protocol import events, virtio1
from vconfs.protocol.errors import LocalProtocolError
from vconfs.protocol.events import Event, Message
from vconfs.testing import Puppet, open_ends

from .test_ends import spec, taken

ALL = virtio1.FEATURES


def control(id: int, event: int, value: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IHH", id, event, value) + payload


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
def test_a_message_cut_anywhere_is_ignored(data: bytes) -> None:
    for length in range(8):
        for end in (virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)):
            assert isinstance(read(end, data[:length]), events.Ignored)


def test_names_come_with_a_nul_or_without() -> None:
    guest = virtio1.GuestEnd(ALL)
    for sent in (b"org.qemu", b"org.qemu\0"):
        assert read(guest, control(3, 7, 1, sent)) == events.PortNamed(3, b"org.qemu")
    assert isinstance(read(guest, control(3, 7, 1, bytes(65536))), events.Ignored)


def test_a_resize_in_the_other_order() -> None:
    message = control(0, 5, 1, struct.pack("<HH", 25, 80))
    assert read(virtio1.GuestEnd(ALL, resize_rows_first=True), message) == events.Resized(0, 80, 25)
    assert virtio1.HostEnd(ALL, resize_rows_first=True).resize(0, 80, 25) == Message(2, message)
    assert isinstance(read(virtio1.GuestEnd(ALL), control(0, 5, 1, b"123")), events.Ignored)


def test_queue_numbers() -> None:
    guest, host = virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)
    assert guest.queues == host.queues == 64
    for id, (to_guest, to_host) in {0: (0, 1), 1: (4, 5), 30: (62, 63)}.items():
        assert host.data_queue(id) == guest.receive_queue(id) == to_guest
        assert guest.data_queue(id) == host.receive_queue(id) == to_host
        assert guest.port_of(to_guest) == guest.port_of(to_host) == id
        assert guest.receive(to_guest, memoryview(b"hi")) == events.Data(id, memoryview(b"hi"))
    assert guest.port_of(2) is None
    assert guest.port_of(3) is None


@pytest.mark.parametrize("id", [31, 32, 2**32 - 1])
def test_ids_beyond_the_devices_ports_are_ignored(id: int) -> None:
    guest, host = virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)
    guest.receive_config(host.config(1))
    assert read(guest, control(id, 1, 1)) == events.Ignored(
        id, f"port id {id} of a device with 31 ports"
    )
    assert isinstance(read(host, control(id, 6, 1)), events.Ignored)


@pytest.mark.parametrize("event", [8, 100, 65535])
def test_unknown_events_are_ignored(event: int) -> None:
    for end in (virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)):
        assert read(end, control(3, event, 1)) == events.Ignored(
            3, f"unknown control event {event}"
        )


@pytest.mark.parametrize("ports", [0, virtio1.PORTS_MAX + 1, 2**32 - 1])
def test_an_absurd_number_of_ports_is_bounded(ports: int) -> None:
    guest = virtio1.GuestEnd(ALL)
    (event,) = guest.receive_config(struct.pack("<HHI", 0, 0, ports))
    assert isinstance(event, events.Ignored)
    assert 1 <= guest.max_ports <= virtio1.PORTS_MAX


@pytest.mark.parametrize("length", range(8))
def test_a_short_config_space_is_ignored(length: int) -> None:
    (event,) = virtio1.GuestEnd(ALL).receive_config(bytes(length))
    assert isinstance(event, events.Ignored)


def test_the_config_tells_the_size_of_the_console_when_it_changes() -> None:
    guest, host = virtio1.GuestEnd(ALL), virtio1.HostEnd(ALL)
    assert guest.receive_config(host.config(1, 80, 25)) == []  # there is no port 0 yet
    read(guest, control(0, 1, 1))
    assert guest.receive_config(host.config(1, 80, 25)) == [events.Resized(0, 80, 25)]
    assert guest.receive_config(host.config(1, 80, 25)) == []
    assert guest.receive_config(host.config(1, 90, 25)) == [events.Resized(0, 90, 25)]
    read(guest, control(0, 2, 1))
    assert guest.receive_config(host.config(1, 100, 25)) == []


def test_without_multiport_there_is_one_console_and_nothing_but_data() -> None:
    guest, host = virtio1.GuestEnd(virtio1.F_SIZE), virtio1.HostEnd(0)
    assert guest.queues == host.queues == 2
    assert guest.receive_config(host.config(1, 80, 25)) == [
        events.PortAdded(0),
        events.ConsolePort(0),
        events.PortOpened(0, True),
        events.Resized(0, 80, 25),
    ]
    for send, _, _ in TO_GUEST:
        assert send(host) is None
    for ask, _, _ in TO_HOST:
        assert ask(guest) is None


def test_what_this_dialect_has_no_message_for() -> None:
    host, guest = virtio1.HostEnd(ALL), virtio1.GuestEnd(ALL)
    assert host.cache_buffers(1, True) is host.buffer_limit(1, 1) is host.throttle(1, True) is None
    assert guest.throttle(1, True) is None
    assert guest.data_header(1, 100) == b""
    with pytest.raises(LocalProtocolError, match="at most 4080 bytes"):
        host.port_name(1, bytes(4081))


_EVENTS = (*(type(event) for _, _, event in TO_GUEST + TO_HOST), events.Data, events.Ignored)


@given(st.binary(max_size=40), st.integers(0, 70), st.sampled_from([ALL, virtio1.F_MULTIPORT, 0]))
def test_random_buffers_always_give_an_event(data: bytes, queue: int, features: int) -> None:
    for end in (virtio1.GuestEnd(features), virtio1.HostEnd(features)):
        assert isinstance(end.receive(queue, memoryview(data)), _EVENTS)


# --- both ends, over real rings -----------------------------------------------------------


async def test_both_ends_together() -> None:
    puppet = Puppet()
    specs = [spec(b"con", console=True), spec(b"org.example.0", puppet)]
    async with open_ends(specs, dialect="virtio1") as ends:
        assert [ends.ports[id].name for id in range(2)] == [b"con", b"org.example.0"]
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
        assert ends.manager.ignored == ends.host.guest.ignored == 0  # type: ignore[union-attr]


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

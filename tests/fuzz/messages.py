"""Targets: control messages of both dialects, and the small protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vconfs.protocol import control, ivshmem, qtest, v8, virtio1, virtio_pci
from vconfs.protocol.dialect import End, Guest
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Data, PortAdded, PortNamed
from vconfs.protocol.lines import LineReader

from .target import Source, target


def _receive(end: End, source: Source) -> None:
    """Pass buffers to an end of a dialect: [queue] [length] bytes. It never raises."""
    while source.more:
        queue = source.number()
        buffer = memoryview(source.piece(2))
        if queue == 0xFF and hasattr(end, "receive_config"):
            for event in end.receive_config(bytes(buffer)):
                assert not isinstance(event, PortAdded) or event.id < v8.PORTS_MAX
            continue
        event = end.receive(queue % end.queues, buffer)
        if isinstance(event, PortNamed):
            assert len(event.name) <= v8.NAME_MAX
        if isinstance(event, Data):
            assert len(event.data) <= len(buffer)


def _features(source: Source) -> int:
    bits = source.number()
    offered = (v8.F_SIZE, v8.F_MULTIPORT, v8.F_PORT_EVENTS, virtio1.F_EMERG_WRITE)
    return sum(feature for i, feature in enumerate(offered) if bits >> i & 1)


@target()
def v8_guest(data: bytes) -> None:
    source = Source(data)
    _receive(v8.GuestEnd(_features(source)), source)


@target()
def v8_host(data: bytes) -> None:
    source = Source(data)
    _receive(v8.HostEnd(_features(source)), source)


@target()
def virtio1_guest(data: bytes) -> None:
    source = Source(data)
    end: Guest = virtio1.GuestEnd(_features(source), resize_rows_first=bool(source.number() & 1))
    _receive(end, source)
    end.emergency_writes(data[:8])


@target()
def virtio1_host(data: bytes) -> None:
    source = Source(data)
    end = virtio1.HostEnd(_features(source))
    end.receive_config_write(source.number(), source.piece())
    _receive(end, source)


# --- lines --------------------------------------------------------------------------------


def _outcome(events: Iterator[object]) -> list[object]:
    """Return what comes, and the error at the end if there is one."""
    found: list[object] = []
    try:
        found.extend(events)
    except RemoteProtocolError as error:
        found.append(str(error))
    return found


def _same_in_pieces(read: Callable[[list[bytes]], Iterator[object]], data: bytes) -> list[object]:
    """Check that what comes does not depend on the pieces in which the bytes come."""
    whole = _outcome(read([data]))
    middle = len(data) // 2
    assert _outcome(read([data[:middle], data[middle:]])) == whole
    assert _outcome(read([data[i : i + 1] for i in range(len(data))])) == whole
    return whole


@target()
def control_requests(data: bytes) -> None:
    def lines(pieces: list[bytes]) -> Iterator[object]:
        reader = LineReader(control.LINE_MAX)
        for piece in pieces:
            yield from reader.feed(piece)

    for line in _same_in_pieces(lines, data):
        if isinstance(line, bytes) and line.strip():
            try:
                request = control.parse_request(line)
            except RemoteProtocolError as error:
                control.encode_error(str(error))
                continue
            assert control.parse_request(control.encode_request(request)) == request


@target(RemoteProtocolError)
def control_replies(data: bytes) -> None:
    first, *lines = data.split(b"\n")
    control.parse_greeting(first)
    for line in lines:
        control.parse_reply(line)


@target()
def qtest_lines(data: bytes) -> None:
    def events(pieces: list[bytes]) -> Iterator[object]:
        reader = LineReader(qtest.LINE_MAX)
        for piece in pieces:
            yield from map(qtest.parse_line, reader.feed(piece))

    _same_in_pieces(events, data)


@target(RemoteProtocolError)
def ivshmem_messages(data: bytes) -> None:
    source, peer = Source(data), ivshmem.Peer()
    number = 0
    while source.more:
        number += 1
        with_descriptor = source.number() & 1
        message = source.take(8).ljust(8, b"\0")
        kept = peer.receive(message, number if with_descriptor else None)
        assert not kept or with_descriptor
    assert len(peer.doorbells) == len(set(peer.doorbells))


@target(RemoteProtocolError)
def pci_function(data: bytes) -> None:
    """The config space of a PCI function, then what its BARs read, and registers."""
    source = Source(data)
    config = source.take(virtio_pci.CONFIG_SIZE).ljust(virtio_pci.CONFIG_SIZE, b"\0")
    function = virtio_pci.parse_function(config)
    sizes = {}
    for index in range(virtio_pci.BARS):
        bar = virtio_pci.parse_bar(index, source.number(4), source.number(4))
        assert bar.size >= 0
        sizes[index] = bar.size
    function.check_bars(sizes)
    offset = function.notify_offset(0, source.number(2))
    assert offset + 2 <= sizes[function.notify.bar]
    virtio_pci.choose_features(source.number(8), virtio1.FEATURES)

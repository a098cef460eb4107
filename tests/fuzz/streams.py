"""Targets: the hello and the frames of a byte stream, at each end."""

from __future__ import annotations

from collections.abc import Sequence

from vconfs.protocol import stream, v8
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.stream import (
    NAMES,
    PAYLOAD_MAX,
    Closed,
    ConfigChanged,
    Connection,
    Frame,
    GuestNamed,
    Hello,
    PeerRestarted,
    Role,
)

from .target import Source, target

#: In one of the comparisons this many bytes at the beginning come one by one.
_SINGLE = 600
_FEATURES = v8.FEATURES | NAMES


def _converse(role: Role, window: int, noise: int, pieces: Sequence[bytes]) -> list[object]:
    """Feed pieces to one end, which answers as a link does; return what came, as values."""
    connection = Connection(role, window=window, noise_max=noise)
    config = v8.HostEnd(v8.FEATURES).config(4) if role is Role.HOST else b""
    connection.hello(_FEATURES, config)
    came: list[object] = []
    for piece in pieces:
        connection.feed(piece)
        if _take(connection, came):
            return came
    connection.feed_eof()
    assert _take(connection, came)
    assert connection.next_event() is None or isinstance(came[-1], str)
    return came


def _take(connection: Connection, came: list[object]) -> bool:
    """Take all events; return True if nothing more can come."""
    try:
        while (event := connection.next_event()) is not None:
            if isinstance(event, Frame):
                assert len(event.payload) <= PAYLOAD_MAX
                connection.acknowledge(len(event.payload), watched=event.watched)
                came.append((event.queue, bytes(event.payload), event.watched))
            else:
                came.append(event)
            if isinstance(event, Hello):
                connection.answer()
                assert connection.features & ~_FEATURES == 0
                if connection.role is Role.GUEST and connection.features & NAMES:
                    connection.name("guest")
                if connection.room >= 9:
                    queue = stream.OUTPUT if connection.role is Role.GUEST else stream.INPUT
                    connection.frame_header(queue, 9, watched=True)
            if isinstance(event, ConfigChanged):
                connection.acknowledge(len(event.config))
            if isinstance(event, GuestNamed):
                assert event.size <= stream.NAME_MAX
                connection.acknowledge(event.size)
            connection.credit()
            if isinstance(event, Closed):
                assert event.reason.isprintable()
                return True
    except PeerRestarted as error:
        came.append(str(error))
        return True
    except RemoteProtocolError as error:
        came.append(str(error))
        return True
    return False


def _fuzz(role: Role, data: bytes) -> None:
    source = Source(data)
    bits = source.number()
    window = (0, 1024, 4096, 4 << 20)[bits & 3]
    noise = 64 if bits & 4 else 0
    said = source.rest()
    whole = _converse(role, window, noise, [said])
    middle = len(said) // 2
    single = [said[i : i + 1] for i in range(min(len(said), _SINGLE))]
    for pieces in ([said[:middle], said[middle:]], [*single, said[_SINGLE:]]):
        assert _same(whole, _converse(role, window, noise, pieces))


def _same(one: list[object], other: list[object]) -> bool:
    """True if both are the same; the noise that a text quotes depends on the pieces."""
    return [type(event) for event in one] == [type(event) for event in other] and [
        event for event in one if not isinstance(event, str)
    ] == [event for event in other if not isinstance(event, str)]


@target()
def stream_guest(data: bytes) -> None:
    _fuzz(Role.GUEST, data)


@target()
def stream_host(data: bytes) -> None:
    _fuzz(Role.HOST, data)

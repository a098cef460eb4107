"""Targets: vhost-user messages, and what front-end, back-end and their channel make of them.

Descriptors are numbers here: each must be returned exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vconfs.host.vhost_user._device import _PROTOCOL_FEATURES
from vconfs.protocol import v8
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError
from vconfs.protocol.vhost_user import (
    Backend,
    Channel,
    ChannelSet,
    Frontend,
    MemoryRegionAdded,
    MemoryTableSet,
    Message,
    Outgoing,
    Parser,
    Region,
    RingStopped,
)
from vconfs.protocol.virtqueue import Layout

from .target import Source, target


class _Descriptors:
    """All descriptors that came, and those that were returned."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.returned: list[int] = []

    def new(self, count: int) -> list[int]:
        made = list(range(len(self.came), len(self.came) + count))
        self.came += made
        return made

    def check(self) -> None:
        assert sorted(self.returned) == self.came, "a descriptor was lost or returned twice"


def _messages(source: Source, parser: Parser, fds: _Descriptors) -> Iterator[Message]:
    """Yield messages: [number of descriptors, 128: with the payload] header payload."""
    while source.more:
        bits = source.number()
        late = bits & 128
        parser.feed(source.take(parser.wanted), fds.new(0 if late else bits & 15))
        message = parser.next_message()
        if message is None:
            parser.feed(source.take(parser.wanted), fds.new(bits & 15 if late else 0))
            message = parser.next_message()
        if message is None:
            return
        yield message


def _talk(data: bytes, react: Callable[[Message, _Descriptors], None]) -> None:
    """Pass all messages on, and check that no descriptor is lost."""
    parser, fds = Parser(), _Descriptors()
    try:
        for message in _messages(Source(data), parser, fds):
            react(message, fds)
    except RemoteProtocolError:
        pass
    fds.returned += parser.release()


@target()
def vhost_user_backend(data: bytes) -> None:
    source = Source(data)
    inband = vu.PF_INBAND_NOTIFICATIONS if source.number() & 1 else 0
    backend = Backend(
        features=v8.FEATURES | 1 << 32,
        protocol_features=_PROTOCOL_FEATURES | inband,
        queues=4,
        read_config=lambda: bytes(8),
        writable=range(8, 12),
    )
    parser, fds = Parser(), _Descriptors()
    try:
        for message in _messages(source, parser, fds):
            handled = backend.receive(message)
            fds.returned += handled.close
            for event in handled.events:
                if isinstance(event, MemoryTableSet):
                    fds.returned += event.fds
                elif isinstance(event, MemoryRegionAdded | ChannelSet):
                    fds.returned.append(event.fd)
                elif isinstance(event, RingStopped) and event.answer:
                    backend.ring_stopped(event.index, 7)
            if handled.reply:
                answer = Parser()
                answer.feed(handled.reply)
                assert answer.next_message() is not None and not answer.ends_inside
            if not handled.events:
                backend.channel.config_change(need_reply=True)
    except RemoteProtocolError:
        pass
    fds.returned += backend.release() + parser.release()
    fds.check()


_CHOSEN = vu.PF_REPLY_ACK | vu.PF_CONFIG | vu.PF_MQ
_LAYOUT = Layout.at(8, 4096)
_REQUESTS: tuple[Callable[[Frontend], Outgoing], ...] = (
    lambda end: end.set_owner(),
    lambda end: end.get_features(),
    lambda end: end.set_features(1 << 32),
    lambda end: end.get_protocol_features(),
    lambda end: end.set_protocol_features(_CHOSEN),
    lambda end: end.get_queue_num(),
    lambda end: end.set_mem_table([Region(0, 4096, 0)], [9]),
    lambda end: end.get_max_mem_slots(),
    lambda end: end.set_vring_num(1, 8),
    lambda end: end.set_vring_addr(1, _LAYOUT),
    lambda end: end.get_vring_base(1),
    lambda end: end.set_vring_kick(1, None),
    lambda end: end.get_config(0, 8),
)
#: Those of them that need a protocol feature.
_NEEDED = {5: vu.PF_MQ, 7: vu.PF_CONFIGURE_MEM_SLOTS, 12: vu.PF_CONFIG}


@target()
def vhost_user_frontend(data: bytes) -> None:
    """The replies of a back-end to requests, and its own requests on the channel."""
    source = Source(data)
    end, channel = Frontend(4), bool(source.number() & 1)
    asked = list(source.piece())
    end.protocol_features = vu.PF_REPLY_ACK * (source.number() & 1)

    def react(message: Message, fds: _Descriptors) -> None:
        fds.returned += message.fds
        if channel:
            end.receive_request(message)
            return
        while asked and not end.waiting:
            _REQUESTS[asked.pop() % len(_REQUESTS)](end)
        end.receive(message)

    _talk(source.rest(), react)


@target()
def vhost_user_channel(data: bytes) -> None:
    """The answers of a front-end on the channel."""
    channel = Channel()
    channel.protocol_features = _PROTOCOL_FEATURES | vu.PF_INBAND_NOTIFICATIONS

    def react(message: Message, fds: _Descriptors) -> None:
        channel.receive(message)

    for index in range(3):
        channel.vring_call(index, need_reply=True)
        channel.vring_err(index, need_reply=True)
        channel.config_change(need_reply=True)
    _talk(data, react)


@target(LocalProtocolError)
def vhost_user_both(data: bytes) -> None:
    """Our front-end, asked for anything in any order, and our back-end: they agree on answers."""
    source = Source(data)
    front = Frontend(4)
    back = Backend(
        features=v8.FEATURES, protocol_features=_PROTOCOL_FEATURES, queues=4, read_config=bytes
    )
    to_back, to_front = Parser(), Parser()
    while source.more:
        number = source.number() % len(_REQUESTS)
        if _NEEDED.get(number, 0) & ~front.protocol_features:
            continue
        sent = _REQUESTS[number](front)
        to_back.feed(sent.data, sent.fds)
        message = to_back.next_message()
        assert message is not None
        try:
            handled = back.receive(message)
        except RemoteProtocolError:
            return  # a request that was made too early
        reply = handled.reply
        for event in handled.events:
            if isinstance(event, RingStopped) and event.answer:
                reply = back.ring_stopped(event.index, 7)
        assert bool(reply) == sent.answered
        if reply:
            to_front.feed(reply)
            answer = to_front.next_message()
            assert answer is not None
            front.receive(answer)
    assert front.waiting == 0

"""vhost-user, both roles against each other, and message by message what may not be sent."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.support.full_frontend import FullFrontend
from vconfs.protocol import vhost_user as vu
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError
from vconfs.protocol.vhost_user import (
    AddressTable,
    Backend,
    BackendRequest,
    Handled,
    Message,
    Notifier,
    Outgoing,
    Parser,
    Refused,
    Region,
    Reply,
    Request,
)
from vconfs.protocol.virtqueue import Layout

NEED_REPLY, REPLY = 8, 4
DEVICE = 1 << 0 | 1 << 1 | 1 << 32
PROTOCOL = (
    vu.PF_MQ
    | vu.PF_REPLY_ACK
    | vu.PF_BACKEND_REQ
    | vu.PF_CONFIG
    | vu.PF_RESET_DEVICE
    | vu.PF_INBAND_NOTIFICATIONS
    | vu.PF_CONFIGURE_MEM_SLOTS
)
SPACE = bytes(range(1, 13))
USER = 0x7F00_0000_0000
REGION = Region(0x10_0000, 0x10_0000, USER, 0x3000)
OTHER = Region(0x80_0000, 0x1000, USER + 0x80_0000)
USER_LAYOUT = Layout(64, USER, USER + 0x400, USER + 0x800)
GUEST_LAYOUT = Layout(64, 0x10_0000, 0x10_0400, 0x10_0800)


def message(
    request: int, payload: bytes = b"", fds: Iterable[int] = (), *, flags: int = 1
) -> Message:
    return Message(request, flags, payload, tuple(fds))


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def state(index: int, num: int) -> bytes:
    return struct.pack("=II", index, num)


def config(offset: int, size: int, flags: int = 0, data: bytes | None = None) -> bytes:
    return struct.pack("=III", offset, size, flags) + (bytes(size) if data is None else data)


def table(*regions: Region, count: int | None = None, spare: int = 0) -> bytes:
    count = len(regions) if count is None else count
    return state(count, 0) + b"".join(r.pack() for r in regions) + bytes(spare)


def addr(index: int, *, flags: int = 0, layout: Layout = USER_LAYOUT) -> bytes:
    return struct.pack("=IIQQQQ", index, flags, layout.desc, layout.used, layout.avail, 0)


def ack(request: int, value: int) -> bytes:
    return struct.pack("=IIIQ", request, 1 | REPLY, 8, value)


def backend(*, protocol: int = PROTOCOL, chosen: int | None = None, acked: bool = True) -> Backend:
    """A back-end whose features and protocol features were negotiated."""
    made = Backend(
        features=DEVICE,
        protocol_features=protocol,
        queues=4,
        read_config=lambda: SPACE,
        writable=range(8, 12),
        mem_slots=3,
    )
    chosen = protocol if chosen is None else chosen
    made.receive(message(Request.SET_PROTOCOL_FEATURES, u64(chosen)))
    if acked:
        made.receive(message(Request.SET_FEATURES, u64(DEVICE | vu.F_PROTOCOL_FEATURES)))
    return made


def with_memory(**options: bool) -> Backend:
    made = backend(**options)
    made.receive(message(Request.SET_MEM_TABLE, table(REGION), [100]))
    return made


def with_ring(index: int = 0, **options: bool) -> Backend:
    """A back-end with a ring that is set up, and not started."""
    made = with_memory(**options)
    for request, payload in (
        (Request.SET_VRING_NUM, state(index, 64)),
        (Request.SET_VRING_BASE, state(index, 7)),
        (Request.SET_VRING_ADDR, addr(index)),
    ):
        assert made.receive(message(request, payload)) == Handled()
    return made


def running(index: int = 0) -> Backend:
    made = with_ring(index)
    made.receive(message(Request.SET_VRING_CALL, u64(index), [101]))
    made.receive(message(Request.SET_VRING_KICK, u64(index), [102]))
    made.receive(message(Request.SET_VRING_ENABLE, state(index, 1)))
    return made


def setup(
    kick: int | None, call: int | None = None, err: int | None = None, *, enabled: bool = False
) -> vu.RingSetup:
    return vu.RingSetup(GUEST_LAYOUT, 7, kick, call, err, enabled)


# Framing

CUTS: list[Callable[[bytes], list[bytes]]] = [
    lambda data: [data],
    lambda data: [data[at : at + 1] for at in range(len(data))],
    lambda data: [piece for piece in (data[:12], data[12:]) if piece],
    lambda data: [piece for piece in (data[:5], data[5:13], data[13:]) if piece],
]
CUT_IDS = ["whole", "bytes", "header", "across"]


@pytest.mark.parametrize("cut", CUTS, ids=CUT_IDS)
def test_a_message_may_come_in_any_pieces(cut: Callable[[bytes], list[bytes]]) -> None:
    parser = Parser()
    sent = struct.pack("=III", 9, 1 | NEED_REPLY, 40) + addr(1)
    messages = []
    for number, piece in enumerate(cut(sent)):
        parser.feed(piece, [5, 6] if number == 0 else [])
        while (got := parser.next_message()) is not None:
            messages.append(got)
    assert messages == [Message(9, 9, addr(1), (5, 6))]
    assert messages[0].needs_reply
    assert parser.release() == []
    assert not parser.ends_inside


def test_several_messages_may_come_at_once() -> None:
    parser = Parser()
    one, two = struct.pack("=III", 3, 1, 0), struct.pack("=III", 13, 1, 8) + u64(1)
    parser.feed(one + two + two[:7], [5])
    assert parser.next_message() == Message(3, 1, b"", (5,))
    assert parser.next_message() == Message(13, 1, u64(1))
    assert parser.next_message() is None
    assert parser.ends_inside


def test_wanted_is_the_rest_of_the_header_and_then_of_the_payload() -> None:
    parser = Parser()
    sent = struct.pack("=III", 13, 1, 8) + u64(1)
    wanted = []
    for at in range(len(sent)):
        assert parser.next_message() is None
        wanted.append(parser.wanted)
        parser.feed(sent[at : at + 1])
    assert wanted == [*range(12, 0, -1), *range(8, 0, -1)]
    assert parser.next_message() is not None
    assert parser.wanted == 12


BAD_HEADERS = [
    (struct.pack("=III", 3, 0, 0), "version 0 in flags 0x0"),
    (struct.pack("=III", 3, 2 | NEED_REPLY, 0), "version 2 in flags 0xa"),
    (struct.pack("=III", 3, 1, 4097), "a payload of 4097 bytes is larger than 4096"),
    (b"GET / HTTP/1.1\r\n", "version 3 in flags 0x5448202f"),
]


@pytest.mark.parametrize(("data", "reason"), BAD_HEADERS)
@pytest.mark.parametrize("cut", CUTS[:2], ids=CUT_IDS[:2])
def test_a_bad_header_is_refused(
    data: bytes, reason: str, cut: Callable[[bytes], list[bytes]]
) -> None:
    parser = Parser()
    for number, piece in enumerate(cut(data[:12])):
        parser.feed(piece, [5] if number == 0 else [])
    parser.feed(data[12:])
    with pytest.raises(RemoteProtocolError) as refused:
        parser.next_message()
    assert str(refused.value) == reason
    with pytest.raises(RemoteProtocolError):
        parser.next_message()
    assert parser.release() == [5]


def test_too_many_descriptors_are_refused_and_given_back() -> None:
    parser = Parser()
    parser.feed(b"\5\0\0\0", range(10, 15))
    assert parser.next_message() is None
    parser.feed(struct.pack("=II", 1, 0), range(15, 19))
    with pytest.raises(RemoteProtocolError, match=r"^9 descriptors in a message$"):
        parser.next_message()
    assert parser.release() == [*range(10, 19)]
    assert parser.release() == []


def test_descriptors_that_come_with_a_payload_are_refused_and_given_back() -> None:
    parser = Parser()
    parser.feed(struct.pack("=III", 13, 1, 8), [5])
    assert parser.next_message() is None
    parser.feed(u64(0), [6])
    with pytest.raises(RemoteProtocolError, match=r"^descriptors came with a payload"):
        parser.next_message()
    assert sorted(parser.release()) == [5, 6]


# Both roles together


@define
class Talk:
    """A front-end and a back-end, and a message's way from one to the other and back."""

    front: FullFrontend = field(factory=lambda: FullFrontend(4))
    back: Backend = field(factory=with_ring)

    def ask(self, sent: Outgoing) -> Handled:
        return self.back.receive(self.carried(sent.data, sent.fds))

    def carried(self, data: bytes, fds: Iterable[int] = ()) -> Message:
        parser = Parser()
        parser.feed(data, fds)
        got = parser.next_message()
        assert got is not None
        return got

    def reply(self, data: bytes) -> Reply:
        return self.front.receive(self.carried(data))


EMPTY_CONFIG = struct.pack("=III", 4, 4, 0)
#: (request of the front-end, what the back-end makes of it, what the front-end makes of that)
CONVERSATION: list[tuple[Callable[[FullFrontend], Outgoing], list[vu.BackendEvent], Reply]] = [
    (lambda f: f.set_owner(), [], Reply(Request.SET_OWNER)),
    (
        lambda f: f.get_features(),
        [],
        Reply(Request.GET_FEATURES, DEVICE | vu.F_PROTOCOL_FEATURES),
    ),
    (lambda f: f.set_features(3), [vu.FeaturesSet(3)], Reply(Request.SET_FEATURES)),
    (lambda f: f.get_protocol_features(), [], Reply(Request.GET_PROTOCOL_FEATURES, PROTOCOL)),
    (lambda f: f.set_protocol_features(PROTOCOL), [], Reply(Request.SET_PROTOCOL_FEATURES)),
    (lambda f: f.get_queue_num(), [], Reply(Request.GET_QUEUE_NUM, 4)),
    (
        lambda f: f.set_mem_table([REGION, OTHER], [50, 51]),
        [vu.MemoryTableSet((REGION, OTHER), (50, 51))],
        Reply(Request.SET_MEM_TABLE),
    ),
    (lambda f: f.get_max_mem_slots(), [], Reply(Request.GET_MAX_MEM_SLOTS, 3)),
    (
        lambda f: f.add_mem_reg(OTHER, 52),
        [vu.MemoryRegionAdded(OTHER, 52)],
        Reply(Request.ADD_MEM_REG),
    ),
    (
        lambda f: f.rem_mem_reg(REGION),
        [vu.MemoryRegionRemoved(REGION)],
        Reply(Request.REM_MEM_REG),
    ),
    (lambda f: f.set_vring_num(1, 128), [], Reply(Request.SET_VRING_NUM)),
    (lambda f: f.set_vring_base(1, 65535), [], Reply(Request.SET_VRING_BASE)),
    (lambda f: f.set_vring_addr(1, USER_LAYOUT), [], Reply(Request.SET_VRING_ADDR)),
    (lambda f: f.get_vring_base(0), [], Reply(Request.GET_VRING_BASE, 7)),
    (
        lambda f: f.set_vring_kick(0, 53),
        [vu.RingStarted(0, setup(53))],
        Reply(Request.SET_VRING_KICK),
    ),
    (
        lambda f: f.set_vring_kick(0, None),
        [vu.RingStarted(0, setup(None))],
        Reply(Request.SET_VRING_KICK),
    ),
    (lambda f: f.set_vring_call(0, 54), [], Reply(Request.SET_VRING_CALL)),
    (lambda f: f.set_vring_err(0, None), [], Reply(Request.SET_VRING_ERR)),
    (lambda f: f.set_vring_enable(0, True), [], Reply(Request.SET_VRING_ENABLE)),
    (
        lambda f: f.vring_kick(0),
        [vu.RingStarted(0, setup(None)), vu.Kicked(0)],
        Reply(Request.VRING_KICK),
    ),
    (lambda f: f.set_backend_req_fd(55), [vu.ChannelSet(55)], Reply(Request.SET_BACKEND_REQ_FD)),
    (lambda f: f.get_config(4, 4), [], Reply(Request.GET_CONFIG, data=SPACE[4:8])),
    (lambda f: f.get_config(8, 8), [], Reply(Request.GET_CONFIG, data=SPACE[8:] + bytes(4))),
    (
        lambda f: f.set_config(8, b"\n\0\0\0"),
        [vu.ConfigWritten(8, b"\n\0\0\0", False)],
        Reply(Request.SET_CONFIG),
    ),
    (lambda f: f.reset_device(), [vu.DeviceReset()], Reply(Request.RESET_DEVICE)),
]


@pytest.mark.parametrize("acks", [True, False])
@pytest.mark.parametrize(("ask", "events", "reply"), CONVERSATION)
def test_what_the_front_end_asks_the_back_end_does(
    ask: Callable[[FullFrontend], Outgoing],
    events: list[vu.BackendEvent],
    reply: Reply,
    acks: bool,
) -> None:
    talk = Talk()
    talk.front.protocol_features = PROTOCOL if acks else PROTOCOL & ~vu.PF_REPLY_ACK
    sent = ask(talk.front)
    handled = talk.ask(sent)
    assert handled.events == events
    assert not handled.close
    assert bool(handled.reply) == sent.answered
    assert sent.answered or not acks
    assert talk.front.waiting == sent.answered
    if sent.answered:
        assert talk.reply(handled.reply) == reply
    assert talk.front.waiting == 0


def test_every_request_is_in_the_conversation() -> None:
    front = FullFrontend(4)
    asked = {struct.unpack_from("=I", ask(front).data)[0] for ask, _, _ in CONVERSATION}
    not_sent = {Request.RESET_OWNER, Request.SET_STATUS, Request.GET_STATUS}
    assert asked == set(Request) - not_sent


def test_messages_are_these_bytes() -> None:
    front = FullFrontend(4)
    assert front.set_owner().data == bytes.fromhex("03000000 01000000 00000000")
    assert front.set_vring_kick(2, None).data == bytes.fromhex(
        "0c000000 01000000 08000000 0201000000000000"
    )
    front.protocol_features = PROTOCOL
    assert front.set_vring_addr(1, Layout(8, 1 << 32, 2 << 32, 3 << 32)).data == bytes.fromhex(
        "09000000 09000000 28000000 01000000 00000000"
        "0000000001000000 0000000003000000 0000000002000000 0000000000000000"
    )
    assert front.rem_mem_reg(Region(1, 2, 3, 4)).data == bytes.fromhex(
        "26000000 09000000 28000000 0000000000000000"
        "0100000000000000 0200000000000000 0300000000000000 0400000000000000"
    )


# The life of a ring


def test_a_ring_starts_disabled_and_stops_when_it_is_asked_for_its_base() -> None:
    made = with_ring()
    made.receive(message(Request.SET_VRING_CALL, u64(0), [11]))
    made.receive(message(Request.SET_VRING_ERR, u64(0), [12]))
    kicked = made.receive(message(Request.SET_VRING_KICK, u64(0), [10]))
    assert kicked == Handled([vu.RingStarted(0, setup(10, 11, 12))])
    enabled = made.receive(message(Request.SET_VRING_ENABLE, state(0, 1)))
    assert enabled == Handled([vu.RingEnabled(0, True)])
    assert made.receive(message(Request.SET_VRING_ENABLE, state(0, 1))) == Handled()
    stopped = made.receive(message(Request.GET_VRING_BASE, state(0, 0)))
    assert stopped == Handled([vu.RingStopped(0, True)], b"", [10, 11])
    with pytest.raises(LocalProtocolError, match="where ring 0 stopped"):
        made.receive(message(Request.SET_OWNER))
    with pytest.raises(LocalProtocolError, match="no request for where ring 1"):
        made.ring_stopped(1, 9)
    assert made.ring_stopped(0, 9) == struct.pack("=IIIII", 11, 5, 8, 0, 9)
    again = made.receive(message(Request.SET_VRING_KICK, u64(0), [13]))
    (started,) = again.events
    assert isinstance(started, vu.RingStarted)
    assert (started.setup.base, started.setup.kick_fd, started.setup.enabled) == (9, 13, True)
    assert started.setup.call_fd is None
    assert sorted(made.release()) == [12, 13]


def test_without_protocol_features_a_ring_starts_enabled() -> None:
    made = with_ring(acked=False)
    made.receive(message(Request.SET_FEATURES, u64(DEVICE)))
    kicked = made.receive(message(Request.SET_VRING_KICK, u64(0), [10]))
    assert kicked.events == [vu.RingStarted(0, setup(10, enabled=True))]
    chosen = made.receive(message(Request.SET_FEATURES, u64(DEVICE | vu.F_PROTOCOL_FEATURES)))
    assert chosen.events == [vu.FeaturesSet(DEVICE), vu.RingEnabled(0, False)]
    assert made.features == DEVICE


def test_a_ring_may_be_enabled_before_its_kick() -> None:
    made = with_ring()
    assert made.receive(message(Request.SET_VRING_ENABLE, state(0, 1))) == Handled()
    kicked = made.receive(message(Request.SET_VRING_KICK, u64(0 | 1 << 8)))
    assert kicked.events == [vu.RingStarted(0, setup(None, enabled=True))]


def test_a_ring_that_grew_out_of_its_region_does_not_start() -> None:
    made = with_ring()
    end = _layout(desc=USER + 0xFFC00)  # 64 descriptors fit, 128 do not
    assert made.receive(message(Request.SET_VRING_ADDR, addr(0, layout=end))) == Handled()
    assert made.receive(message(Request.SET_VRING_NUM, state(0, 128))) == Handled()
    kick = message(Request.SET_VRING_KICK, u64(0), [10], flags=1 | NEED_REPLY)
    reason = f"2048 bytes at user address {USER + 0xFFC00:#x} are outside of every region"
    assert made.receive(kick) == Handled(
        [Refused(Request.SET_VRING_KICK, reason)], ack(Request.SET_VRING_KICK, 1), [10]
    )


def test_the_first_kick_in_band_starts_a_ring() -> None:
    made = with_ring()
    kick = message(Request.VRING_KICK, state(0, 0))
    assert made.receive(kick).events == [vu.RingStarted(0, setup(None)), vu.Kicked(0)]
    assert made.receive(kick).events == [vu.Kicked(0)]


@pytest.mark.parametrize(
    ("request_", "notifier"),
    [
        (Request.SET_VRING_KICK, Notifier.KICK),
        (Request.SET_VRING_CALL, Notifier.CALL),
        (Request.SET_VRING_ERR, Notifier.ERR),
    ],
)
def test_a_running_ring_can_get_other_descriptors(request_: Request, notifier: Notifier) -> None:
    made = running()
    made.receive(message(request_, u64(0), [20]))
    changed = made.receive(message(request_, u64(0), [21]))
    assert changed == Handled([vu.NotifierChanged(0, notifier, 21)], b"", [20])
    changed = made.receive(message(request_, u64(1 << 8)))
    assert changed == Handled([vu.NotifierChanged(0, notifier, None)], b"", [21])


def test_a_ring_that_is_only_disabled_is_stopped_by_setting_it_up() -> None:
    """Linux's user-mode driver, loaded again."""
    made = running()
    assert made.receive(message(Request.SET_VRING_ENABLE, state(0, 0))).events == [
        vu.RingEnabled(0, False)
    ]
    features = message(Request.SET_FEATURES, u64(DEVICE | vu.F_PROTOCOL_FEATURES))
    assert made.receive(features).events == [vu.FeaturesSet(DEVICE)]
    moved = made.receive(message(Request.SET_MEM_TABLE, table(REGION, spare=32), [30]))
    assert moved.events == [
        vu.MemoryTableSet((REGION,), (30,)),
        vu.RingMoved(0, GUEST_LAYOUT),
    ]
    call = made.receive(message(Request.SET_VRING_CALL, u64(0), [31]))
    assert call == Handled([vu.NotifierChanged(0, Notifier.CALL, 31)], b"", [101])
    num = made.receive(message(Request.SET_VRING_NUM, state(0, 64)))
    assert num.events == [vu.RingStopped(0, False)]
    made.receive(message(Request.SET_VRING_BASE, state(0, 0)))
    made.receive(message(Request.SET_VRING_ADDR, addr(0)))
    kick = made.receive(message(Request.SET_VRING_KICK, u64(0), [32]))
    assert kick == Handled(
        [vu.RingStarted(0, vu.RingSetup(GUEST_LAYOUT, 0, 32, 31, None, False))], b"", [102]
    )


def test_a_started_ring_follows_the_memory_or_stops() -> None:
    made = running()
    moved = Region(0x50_0000, 0x2000, USER - 0x1000)
    handled = made.receive(message(Request.SET_MEM_TABLE, table(moved), [30]))
    assert handled.events == [
        vu.MemoryTableSet((moved,), (30,)),
        vu.RingMoved(0, Layout(64, 0x50_1000, 0x50_1400, 0x50_1800)),
    ]
    description = u64(0) + OTHER.pack()
    handled = made.receive(message(Request.ADD_MEM_REG, description, [31]))
    assert len(handled.events) == 2
    handled = made.receive(message(Request.REM_MEM_REG, u64(0) + moved.pack(), [32]))
    assert handled == Handled([vu.RingStopped(0, False), vu.MemoryRegionRemoved(moved)], b"", [32])
    assert made.memory.regions == (OTHER,)


def test_a_reset_stops_all_rings_and_forgets_them() -> None:
    made = running(2)
    handled = made.receive(message(Request.RESET_DEVICE))
    assert handled.events == [vu.RingStopped(2, False), vu.DeviceReset()]
    assert sorted(handled.close) == [101, 102]
    assert made.receive(message(Request.GET_VRING_BASE, state(2, 0))).reply.endswith(state(2, 0))


def test_reset_owner_is_ignored() -> None:
    assert running().receive(message(Request.RESET_OWNER)) == Handled()


def test_a_migration_may_write_the_whole_config_space() -> None:
    handled = backend().receive(message(Request.SET_CONFIG, config(0, 12, 1, SPACE)))
    assert handled.events == [vu.ConfigWritten(0, SPACE, True)]


# One wrong field each

FAILS, TOLERATED = "fails", "tolerated"
_WRAPS = Region(1 << 63, (1 << 63) + 1, USER)
_OUTSIDE = f"at user address {USER + 0xFFFF0:#x} are outside of every region"


def _layout(**parts: int) -> Layout:
    made = {"size": 64, "desc": USER, "avail": USER + 0x400, "used": USER + 0x800, **parts}
    return Layout(**made)


#: (state before, request, payload, fds, reason, outcome without NEED_REPLY)
REFUSED: list[tuple[Callable[[], Backend], int, bytes, list[int], str, str]] = [
    (
        backend,
        Request.SET_FEATURES,
        u64(1 << 5),
        [],
        "features 0x20 were chosen but not offered (0x140000003 were)",
        FAILS,
    ),
    (
        backend,
        Request.SET_PROTOCOL_FEATURES,
        u64(1 << 8),
        [],
        f"protocol features 0x100 were chosen but not offered ({PROTOCOL:#x} were)",
        FAILS,
    ),
    (
        with_memory,
        Request.SET_MEM_TABLE,
        table(REGION, Region(0x1F_F000, 0x1000, 0)),
        [5, 6],
        "the region at guest 0x1ff000 overlaps another",
        FAILS,
    ),
    (
        with_memory,
        Request.SET_MEM_TABLE,
        table(REGION, Region(0, 0x1000, USER + 0xFF000)),
        [5, 6],
        f"the region at user {USER + 0xFF000:#x} overlaps another",
        FAILS,
    ),
    (
        with_memory,
        Request.SET_MEM_TABLE,
        table(Region(0x1000, 0, USER)),
        [5],
        "the region at guest 0x1000 is empty",
        FAILS,
    ),
    (
        with_memory,
        Request.SET_MEM_TABLE,
        table(_WRAPS),
        [5],
        "a region of 0x8000000000000001 bytes at 0x8000000000000000 passes the end of "
        "guest addresses",
        FAILS,
    ),
    (
        with_memory,
        Request.SET_MEM_TABLE,
        table(Region(0, 2, (1 << 64) - 1)),
        [5],
        "a region of 0x2 bytes at 0xffffffffffffffff passes the end of user addresses",
        FAILS,
    ),
    (
        with_memory,
        Request.SET_MEM_TABLE,
        table(Region(0, 1, 0, 1 << 63)),
        [5],
        "a region of 0x1 bytes at 0x8000000000000000 passes the end of any file",
        FAILS,
    ),
    (
        with_memory,
        Request.ADD_MEM_REG,
        u64(0) + REGION.pack(),
        [5],
        "the region at guest 0x100000 overlaps another",
        FAILS,
    ),
    (
        with_memory,
        Request.REM_MEM_REG,
        u64(0) + OTHER.pack(),
        [],
        f"there is no region of 0x1000 bytes at guest 0x800000, user {USER + 0x80_0000:#x}",
        FAILS,
    ),
    (with_memory, Request.SET_VRING_NUM, state(4, 64), [], "ring 4 of 4", FAILS),
    (with_memory, Request.SET_VRING_NUM, state(0, 0), [], "ring 0 with a size of 0", FAILS),
    (with_memory, Request.SET_VRING_NUM, state(0, 65), [], "ring 0 with a size of 65", FAILS),
    (
        with_memory,
        Request.SET_VRING_NUM,
        state(0, 1 << 16),
        [],
        "ring 0 with a size of 65536",
        FAILS,
    ),
    (running, Request.SET_VRING_NUM, state(0, 64), [], "ring 0 is running", FAILS),
    (with_memory, Request.SET_VRING_BASE, state(4, 0), [], "ring 4 of 4", FAILS),
    (
        with_memory,
        Request.SET_VRING_BASE,
        state(0, 65536),
        [],
        "ring 0 with a base of 65536",
        FAILS,
    ),
    (running, Request.SET_VRING_BASE, state(0, 0), [], "ring 0 is running", FAILS),
    (with_ring, Request.SET_VRING_ADDR, addr(1 << 31), [], "ring 2147483648 of 4", FAILS),
    (with_ring, Request.SET_VRING_ADDR, addr(0, flags=1), [], "ring 0 with flags 0x1", FAILS),
    (running, Request.SET_VRING_ADDR, addr(0), [], "ring 0 is running", FAILS),
    (
        with_ring,
        Request.SET_VRING_ADDR,
        addr(0, layout=_layout(desc=USER + 0xFFFF0)),
        [],
        "1024 bytes " + _OUTSIDE,
        FAILS,
    ),
    (
        with_ring,
        Request.SET_VRING_ADDR,
        addr(0, layout=_layout(avail=USER + 0xFFFF0)),
        [],
        "134 bytes " + _OUTSIDE,
        FAILS,
    ),
    (
        with_ring,
        Request.SET_VRING_ADDR,
        addr(0, layout=_layout(used=USER + 0xFFFF0)),
        [],
        "518 bytes " + _OUTSIDE,
        FAILS,
    ),
    (
        backend,
        Request.SET_VRING_ADDR,
        addr(0),
        [],
        f"0 bytes at user address {USER:#x} are outside of every region",
        FAILS,
    ),
    (
        with_ring,
        Request.SET_VRING_ADDR,
        addr(0, layout=_layout(desc=USER + 8)),
        [],
        f"ring 0: the address {USER + 8:#x} is not aligned to 16",
        FAILS,
    ),
    (
        with_ring,
        Request.SET_VRING_ADDR,
        addr(0, layout=_layout(avail=USER + 1)),
        [],
        f"ring 0: the address {USER + 1:#x} is not aligned to 2",
        FAILS,
    ),
    (
        with_ring,
        Request.SET_VRING_ADDR,
        addr(0, layout=_layout(used=USER + 2)),
        [],
        f"ring 0: the address {USER + 2:#x} is not aligned to 4",
        FAILS,
    ),
    (with_ring, Request.SET_VRING_KICK, u64(4), [5], "ring 4 of 4", FAILS),
    (with_ring, Request.SET_VRING_KICK, u64(255 | 1 << 8), [], "ring 255 of 4", FAILS),
    (
        with_ring,
        Request.SET_VRING_KICK,
        u64(1),
        [5],
        "ring 1 has no size or no address yet",
        FAILS,
    ),
    (with_ring, Request.SET_VRING_CALL, u64(4), [5], "ring 4 of 4", FAILS),
    (with_ring, Request.SET_VRING_ERR, u64(4), [5], "ring 4 of 4", FAILS),
    (with_ring, Request.SET_VRING_ENABLE, state(4, 1), [], "ring 4 of 4", FAILS),
    (with_ring, Request.VRING_KICK, state(4, 0), [], "ring 4 of 4", FAILS),
    (
        with_ring,
        Request.VRING_KICK,
        state(1, 0),
        [],
        "ring 1 has no size or no address yet",
        FAILS,
    ),
    (backend, 99, b"what?", [5, 6], "unknown request 99", TOLERATED),
    (backend, 0, b"", [], "unknown request 0", TOLERATED),
    (
        backend,
        Request.SET_CONFIG,
        config(9, 4),
        [],
        "config bytes 9 to 13 are not writable",
        TOLERATED,
    ),
    (
        backend,
        Request.SET_CONFIG,
        config(0, 4),
        [],
        "config bytes 0 to 4 are not writable",
        TOLERATED,
    ),
    (
        backend,
        Request.SET_CONFIG,
        config(8, 8, 1),
        [],
        "config bytes 8 to 16 are not writable",
        TOLERATED,
    ),
    (
        backend,
        Request.SET_CONFIG,
        config(8, 4, 2),
        [],
        "SET_CONFIG with flags 0x2",
        TOLERATED,
    ),
]
REFUSED_IDS = [f"{number}-{reason}" for number, (_, _, _, _, reason, _) in enumerate(REFUSED)]


@pytest.mark.parametrize("case", REFUSED, ids=REFUSED_IDS)
def test_a_wrong_field_is_refused_and_acknowledged_as_such(
    case: tuple[Callable[[], Backend], int, bytes, list[int], str, str],
) -> None:
    make, request, payload, fds, reason, _ = case
    made, untouched = make(), make()
    handled = made.receive(message(request, payload, fds, flags=1 | NEED_REPLY))
    assert handled == Handled([Refused(request, reason)], ack(request, 1), fds)
    # Nothing has changed, and the connection goes on.
    assert made.memory.regions == untouched.memory.regions
    for probe in (
        message(Request.SET_VRING_KICK, u64(0 | 1 << 8), flags=1 | NEED_REPLY),
        message(Request.SET_VRING_ENABLE, state(0, 0), flags=1 | NEED_REPLY),
        message(Request.GET_VRING_BASE, state(0, 0)),
    ):
        assert made.receive(probe) == untouched.receive(probe)
    assert made.release() == untouched.release()


@pytest.mark.parametrize("case", REFUSED, ids=REFUSED_IDS)
def test_a_wrong_field_without_need_reply_ends_the_connection_or_is_ignored(
    case: tuple[Callable[[], Backend], int, bytes, list[int], str, str],
) -> None:
    make, request, payload, fds, reason, outcome = case
    made = make()
    held = make().release()
    if outcome is TOLERATED:
        handled = made.receive(message(request, payload, fds))
        assert handled == Handled([Refused(request, reason)], b"", fds)
        assert made.release() == held
        return
    with pytest.raises(RemoteProtocolError) as refused:
        made.receive(message(request, payload, fds))
    assert str(refused.value) == reason
    with pytest.raises(RemoteProtocolError):
        made.receive(message(Request.SET_OWNER, fds=[77]))
    assert sorted(made.release()) == sorted([*held, *fds, 77])


@pytest.mark.parametrize("need_reply", [0, NEED_REPLY])
def test_need_reply_counts_only_where_it_was_negotiated(need_reply: int) -> None:
    made = backend(chosen=PROTOCOL & ~vu.PF_REPLY_ACK & ~vu.PF_INBAND_NOTIFICATIONS)
    assert made.receive(message(3, flags=1 | need_reply)) == Handled()
    assert made.receive(message(99, flags=1 | need_reply)).reply == b""


def test_the_message_that_negotiates_acknowledgements_can_ask_for_one() -> None:
    """Linux's user-mode driver does."""
    made = Backend(features=DEVICE, protocol_features=PROTOCOL, queues=4)
    for chosen, reply in ((vu.PF_CONFIG, b""), (vu.PF_REPLY_ACK, ack(16, 0))):
        choice = message(Request.SET_PROTOCOL_FEATURES, u64(chosen), flags=1 | NEED_REPLY)
        assert made.receive(choice) == Handled(reply=reply)


@pytest.mark.parametrize("ask", [ask for ask, _, _ in CONVERSATION])
def test_a_request_whose_protocol_feature_was_not_negotiated_is_unknown(
    ask: Callable[[FullFrontend], Outgoing],
) -> None:
    made = backend(chosen=vu.PF_REPLY_ACK)
    sent = ask(FullFrontend(4))
    (request,) = struct.unpack_from("=I", sent.data)
    got = message(request, sent.data[12:], sent.fds, flags=1 | NEED_REPLY)
    needs_feature = request in {17, 21, 24, 25, *range(34, 41)}
    handled = made.receive(got)
    refusal = Refused(request, f"unknown {Request(request).name}")
    assert (refusal in handled.events) == needs_feature
    if needs_feature:
        assert handled == Handled([refusal], ack(request, 1), list(sent.fds))


#: (request, payload, fds, reason) of what ends the connection in any case
FATAL = [
    (Request.SET_FEATURES, b"", [], "SET_FEATURES with a payload of 0 bytes, not 8"),
    (Request.SET_FEATURES, bytes(9), [], "SET_FEATURES with a payload of 9 bytes, not 8"),
    (Request.GET_FEATURES, bytes(8), [], "GET_FEATURES with a payload of 8 bytes, not 0"),
    (Request.SET_VRING_NUM, bytes(7), [], "SET_VRING_NUM with a payload of 7 bytes, not 8"),
    (Request.SET_VRING_ADDR, bytes(39), [], "SET_VRING_ADDR with a payload of 39 bytes, not 40"),
    (Request.SET_VRING_KICK, bytes(4), [5], "SET_VRING_KICK with a payload of 4 bytes, not 8"),
    (
        Request.ADD_MEM_REG,
        REGION.pack(),
        [5],
        "ADD_MEM_REG with a payload of 32 bytes, not 40",
    ),
    (Request.SET_OWNER, b"", [5], "SET_OWNER with 1 descriptors"),
    (Request.SET_VRING_NUM, state(0, 8), [5], "SET_VRING_NUM with 1 descriptors"),
    (Request.SET_VRING_KICK, u64(0), [], "0 descriptors, not 1, for ring 0"),
    (Request.SET_VRING_KICK, u64(0), [5, 6], "SET_VRING_KICK with 2 descriptors"),
    (Request.SET_VRING_KICK, u64(1 << 8), [5], "1 descriptors, not 0, for ring 0"),
    (Request.SET_VRING_CALL, u64(1), [], "0 descriptors, not 1, for ring 1"),
    (Request.SET_VRING_ERR, u64(1), [], "0 descriptors, not 1, for ring 1"),
    (Request.SET_BACKEND_REQ_FD, b"", [], "SET_BACKEND_REQ_FD with 0 descriptors"),
    (Request.SET_BACKEND_REQ_FD, b"", [5, 6], "SET_BACKEND_REQ_FD with 2 descriptors"),
    (Request.ADD_MEM_REG, u64(0) + REGION.pack(), [], "ADD_MEM_REG with 0 descriptors"),
    (Request.REM_MEM_REG, u64(0) + REGION.pack(), [5, 6], "REM_MEM_REG with 2 descriptors"),
    (Request.SET_MEM_TABLE, bytes(7), [], "SET_MEM_TABLE with a payload of 7 bytes"),
    (Request.SET_MEM_TABLE, table(count=9), [5], "SET_MEM_TABLE with 9 regions"),
    (
        Request.SET_MEM_TABLE,
        table(REGION, count=2),
        [5, 6],
        "SET_MEM_TABLE with 2 regions in a payload of 40 bytes",
    ),
    (
        Request.SET_MEM_TABLE,
        table(REGION, OTHER),
        [5],
        "SET_MEM_TABLE with 2 regions and 1 descriptors",
    ),
    (
        Request.SET_MEM_TABLE,
        table(REGION),
        [5, 6],
        "SET_MEM_TABLE with 1 regions and 2 descriptors",
    ),
    (Request.GET_CONFIG, bytes(11), [], "GET_CONFIG with a payload of 11 bytes"),
    (Request.GET_CONFIG, config(0, 4, 0, b"x"), [], "GET_CONFIG of 4 bytes with 1 bytes"),
    (Request.SET_CONFIG, config(8, 4, 0, b"12345"), [], "SET_CONFIG of 4 bytes with 5 bytes"),
    (Request.GET_VRING_BASE, state(4, 0), [], "ring 4 of 4"),
    (
        Request.SET_PROTOCOL_FEATURES,
        u64(vu.PF_INBAND_NOTIFICATIONS | vu.PF_REPLY_ACK),
        [],
        "INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK",
    ),
    (
        Request.SET_PROTOCOL_FEATURES,
        u64(vu.PF_INBAND_NOTIFICATIONS | vu.PF_BACKEND_REQ),
        [],
        "INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK",
    ),
]


@pytest.mark.parametrize("flags", [1, 1 | NEED_REPLY])
@pytest.mark.parametrize(("request_", "payload", "fds", "reason"), FATAL)
def test_what_cannot_be_answered_ends_the_connection(
    request_: int, payload: bytes, fds: list[int], reason: str, flags: int
) -> None:
    made = backend()
    with pytest.raises(RemoteProtocolError) as refused:
        made.receive(message(request_, payload, fds, flags=flags))
    assert str(refused.value) == reason
    assert made.release() == fds


def test_a_reply_is_not_a_request() -> None:
    with pytest.raises(RemoteProtocolError, match=r"^SET_OWNER has the flag of a reply$"):
        backend().receive(message(Request.SET_OWNER, flags=1 | REPLY))


@pytest.mark.parametrize(("offset", "size"), [(0, 257), (256, 1), (0xFFFFFFFF, 1)])
def test_a_config_space_out_of_range_is_answered_by_nothing(offset: int, size: int) -> None:
    handled = backend().receive(message(Request.GET_CONFIG, config(offset, size)))
    reason = f"config bytes {offset} to {offset + size}"
    assert handled.events == [Refused(Request.GET_CONFIG, reason)]
    assert handled.reply == struct.pack("=III", 24, 5, 0)


def test_regions_are_added_up_to_the_slots_there_are() -> None:
    made = with_memory()
    descriptions = [u64(0) + Region(i << 32, 4096, i << 32).pack() for i in range(1, 4)]
    for fd, description in enumerate(descriptions[:2]):
        made.receive(message(Request.ADD_MEM_REG, description, [fd]))
    with pytest.raises(RemoteProtocolError, match=r"^there are 3 regions already$"):
        made.receive(message(Request.ADD_MEM_REG, descriptions[2], [9]))


# Addresses


def test_user_addresses_become_guest_addresses_within_one_region() -> None:
    addresses = AddressTable([REGION, Region(0x20_0000, 0x1000, USER + 0x10_0000)])
    assert addresses.to_guest(USER, 0x10_0000) == 0x10_0000
    assert addresses.to_guest(USER + 0xF_FFFF, 1) == 0x1F_FFFF
    assert addresses.to_guest(USER + 0x10_0000, 1) == 0x20_0000
    for user, length in ((USER - 1, 1), (USER + 0xF_FFFF, 2), (USER + 0x10_1000, 1), (0, 1)):
        with pytest.raises(RemoteProtocolError, match="outside of every region"):
            addresses.to_guest(user, length)


# The front-end


def asked(ask: Callable[[FullFrontend], object]) -> FullFrontend:
    front = FullFrontend(4)
    front.protocol_features = PROTOCOL
    ask(front)
    return front


BAD_REPLIES: list[tuple[Callable[[FullFrontend], object], Message, str]] = [
    (lambda f: f, message(1, u64(0), flags=5), "GET_FEATURES is not a reply to any request"),
    (
        lambda f: f.get_features(),
        message(1, u64(0), flags=1),
        "GET_FEATURES is not a reply to any request",
    ),
    (
        lambda f: f.get_features(),
        message(15, u64(0), flags=5),
        "GET_PROTOCOL_FEATURES answers GET_FEATURES",
    ),
    (lambda f: f.set_owner(), message(99, u64(0), flags=5), "request 99 answers SET_OWNER"),
    (
        lambda f: f.get_features(),
        message(1, bytes(7), flags=5),
        "GET_FEATURES with a payload of 7 bytes, not 8",
    ),
    (
        lambda f: f.set_owner(),
        message(3, b"", flags=5),
        "SET_OWNER with a payload of 0 bytes, not 8",
    ),
    (
        lambda f: f.get_features(),
        message(1, u64(0), [5], flags=5),
        "the reply to GET_FEATURES has 1 descriptors",
    ),
    (
        lambda f: f.get_config(4, 4),
        message(24, config(4, 3), flags=5),
        "the reply to GET_CONFIG has 15 bytes, not 16",
    ),
    (
        lambda f: f.get_config(4, 4),
        message(24, config(5, 4), flags=5),
        "the reply to GET_CONFIG has 4 bytes from 5, not 4 from 4",
    ),
    (
        lambda f: f.get_config(4, 4),
        message(24, config(4, 9, data=b"1234"), flags=5),
        "the reply to GET_CONFIG has 9 bytes from 4, not 4 from 4",
    ),
    (
        lambda f: f.get_vring_base(1),
        message(11, state(2, 0), flags=5),
        "GET_VRING_BASE of ring 1 is answered for 2",
    ),
    (
        lambda f: f.get_vring_base(1),
        message(11, state(1, 65536), flags=5),
        "ring 1 stopped at 65536",
    ),
    (
        lambda f: f.get_vring_base(1),
        message(11, b"1234", flags=5),
        "GET_VRING_BASE with a payload of 4 bytes, not 8",
    ),
]


@pytest.mark.parametrize(("ask", "reply", "reason"), BAD_REPLIES)
def test_a_bad_reply_ends_the_connection(
    ask: Callable[[FullFrontend], object], reply: Message, reason: str
) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        asked(ask).receive(reply)
    assert str(refused.value) == reason


def test_replies_come_in_the_order_of_the_requests() -> None:
    front = asked(lambda f: (f.set_owner(), f.get_features(), f.set_features(1)))
    assert front.waiting == 3
    assert front.receive(message(3, u64(1), flags=5)) == Reply(Request.SET_OWNER, refused=True)
    assert front.receive(message(1, u64(9), flags=5)) == Reply(Request.GET_FEATURES, 9)
    assert front.receive(message(2, u64(0), flags=5)) == Reply(Request.SET_FEATURES)


def test_a_config_reply_without_payload_is_a_refusal() -> None:
    front = asked(lambda f: f.get_config(0, 8))
    assert front.receive(message(24, flags=5)) == Reply(Request.GET_CONFIG, refused=True)


WRONG_CALLS: list[tuple[Callable[[FullFrontend], object], str]] = [
    (lambda f: f.set_vring_num(4, 8), "ring 4 of 4"),
    (lambda f: f.set_vring_addr(-1, USER_LAYOUT), "ring -1 of 4"),
    (lambda f: f.set_vring_kick(4, 1), "ring 4 of 4"),
    (lambda f: f.set_mem_table([], []), "0 regions and 0 descriptors"),
    (lambda f: f.set_mem_table([REGION], [1, 2]), "1 regions and 2 descriptors"),
    (lambda f: f.set_mem_table([REGION] * 9, [1] * 9), "9 regions and 9 descriptors"),
    (lambda f: f.get_config(250, 7), "config bytes 250 to 257"),
    (lambda f: f.set_config(250, bytes(7)), "config bytes 250 to 257"),
]


@pytest.mark.parametrize(("call", "reason"), WRONG_CALLS)
def test_a_wrong_call_is_refused(call: Callable[[FullFrontend], object], reason: str) -> None:
    with pytest.raises(LocalProtocolError) as refused:
        call(FullFrontend(4))
    assert str(refused.value) == reason


@pytest.mark.parametrize("queues", [0, 257])
def test_there_are_1_to_256_queues(queues: int) -> None:
    with pytest.raises(LocalProtocolError):
        FullFrontend(queues)
    with pytest.raises(LocalProtocolError):
        Backend(features=0, protocol_features=0, queues=queues)


# The channel: requests of the back-end

CHANNEL: list[tuple[Callable[[vu.Channel, bool], Outgoing | None], vu.FrontendEvent]] = [
    (lambda c, need: c.config_change(need_reply=need), vu.ConfigStale()),
    (lambda c, need: c.vring_call(3, need_reply=need), vu.VringCalled(3)),
    (lambda c, need: c.vring_err(2, need_reply=need), vu.VringBroken(2)),
]


@pytest.mark.parametrize("need", [False, True])
@pytest.mark.parametrize(("ask", "event"), CHANNEL)
def test_what_the_back_end_asks_the_front_end_does(
    ask: Callable[[vu.Channel, bool], Outgoing | None],
    event: vu.FrontendEvent,
    need: bool,
) -> None:
    talk = Talk()
    talk.front.protocol_features = PROTOCOL
    sent = ask(talk.back.channel, need)
    assert sent is not None
    assert sent.answered == need
    done = talk.front.receive_request(talk.carried(sent.data))
    assert done.event == event
    assert bool(done.reply) == need
    if need:
        assert talk.back.channel.receive(talk.carried(done.reply)) is True


@pytest.mark.parametrize(("ask", "event"), CHANNEL)
def test_a_front_end_that_has_not_agreed_is_not_asked(
    ask: Callable[[vu.Channel, bool], Outgoing | None], event: vu.FrontendEvent
) -> None:
    assert ask(vu.Channel(), False) is None
    assert ask(backend(chosen=PROTOCOL & ~vu.PF_BACKEND_REQ & ~(1 << 14)).channel, True) is None


@pytest.mark.parametrize("flags", [1, 1 | NEED_REPLY])
@pytest.mark.parametrize(
    ("request_", "payload", "reason"),
    [
        (1, bytes(32), "unknown request 1 on the channel"),
        (BackendRequest.VRING_CALL, state(4, 0), "VRING_CALL for ring 4 of 4"),
        (BackendRequest.VRING_ERR, state(4, 0), "VRING_ERR for ring 4 of 4"),
    ],
)
def test_a_front_end_refuses_what_it_cannot_do(
    request_: int, payload: bytes, reason: str, flags: int
) -> None:
    done = asked(lambda f: f).receive_request(message(request_, payload, flags=flags))
    assert done.event == Refused(request_, reason)
    assert done.reply == (ack(request_, 1) if flags & NEED_REPLY else b"")


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (message(2, flags=5), "CONFIG_CHANGE_MSG on the channel has the flag of a reply"),
        (message(2, fds=[5]), "CONFIG_CHANGE_MSG on the channel has 1 descriptors"),
        (message(2, b"x"), "CONFIG_CHANGE_MSG with a payload of 1 bytes, not 0"),
        (message(4, b"x"), "VRING_CALL with a payload of 1 bytes, not 8"),
    ],
)
def test_a_bad_request_ends_the_channel(got: Message, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as refused:
        FullFrontend(4).receive_request(got)
    assert str(refused.value) == reason


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (message(2, u64(0)), "CONFIG_CHANGE_MSG on the channel is not a reply to any request"),
        (message(4, u64(0), flags=5), "VRING_CALL on the channel answers CONFIG_CHANGE_MSG"),
        (message(2, u64(0), [5], flags=5), "CONFIG_CHANGE_MSG on the channel with 1 descriptors"),
        (message(2, flags=5), "CONFIG_CHANGE_MSG with a payload of 0 bytes, not 8"),
    ],
)
def test_a_bad_reply_ends_the_channel(got: Message, reason: str) -> None:
    channel = backend().channel
    channel.config_change(need_reply=True)
    with pytest.raises(RemoteProtocolError) as refused:
        channel.receive(got)
    assert str(refused.value) == reason


def test_a_front_end_that_fails_a_request_reports_it() -> None:
    channel = backend().channel
    channel.config_change(need_reply=True)
    assert channel.receive(message(2, u64(1), flags=5)) is False
    with pytest.raises(RemoteProtocolError, match="not a reply to any request"):
        channel.receive(message(2, u64(0), flags=5))


# Anything

PAYLOADS = st.one_of(
    st.binary(max_size=60),
    st.builds(state, st.integers(0, 5), st.sampled_from([0, 1, 7, 64, 65536])),
    st.builds(u64, st.sampled_from([0, 1, 3, 4, 1 << 8, PROTOCOL, DEVICE, DEVICE | 1 << 30])),
    st.builds(addr, st.integers(0, 4)),
    st.just(table(REGION)),
    st.just(table(REGION, OTHER)),
    st.just(u64(0) + OTHER.pack()),
    st.builds(config, st.integers(0, 20), st.integers(0, 8), st.integers(0, 2)),
)


class Ledger:
    """Descriptors, each to be given back exactly once."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self.out: set[int] = set()

    def make(self, count: int) -> list[int]:
        fds = list(itertools.islice(self._numbers, count))
        self.out.update(fds)
        return fds

    def back(self, fds: Iterable[int]) -> None:
        for fd in fds:
            self.out.remove(fd)

    def back_in(self, event: vu.BackendEvent) -> None:
        if isinstance(event, vu.MemoryTableSet):
            self.back(event.fds)
        elif isinstance(event, vu.MemoryRegionAdded | vu.ChannelSet):
            self.back([event.fd])


@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from([int(request) for request in Request]), st.integers(0, 50)),
            PAYLOADS,
            st.sampled_from([0, 0, 1, 1, 2]),
            st.sampled_from([1, 1 | NEED_REPLY, 1 | NEED_REPLY, 1 | REPLY]),
        ),
        max_size=30,
    ),
    st.booleans(),
)
@settings(max_examples=examples(100))
def test_no_messages_lose_a_descriptor_or_raise_anything_but_a_protocol_error(
    messages: list[tuple[int, bytes, int, int]], started: bool
) -> None:
    ledger = Ledger()
    made = running() if started else backend()
    ledger.out.update({101, 102} if started else ())
    ledger._numbers = itertools.count(200)
    rings: set[int] = {0} if started else set()
    try:
        for request, payload, fds, flags in messages:
            handled = made.receive(message(request, payload, ledger.make(fds), flags=flags))
            for event in handled.events:
                ledger.back_in(event)
                if isinstance(event, vu.RingStarted):
                    assert event.index not in rings
                    rings.add(event.index)
                elif isinstance(event, vu.RingStopped):
                    rings.remove(event.index)
                    if event.answer:
                        assert made.ring_stopped(event.index, 1)
                elif isinstance(event, vu.RingMoved | vu.RingEnabled | vu.NotifierChanged):
                    assert event.index in rings
            ledger.back(handled.close)
    except RemoteProtocolError:
        pass
    ledger.back(made.release())
    assert not ledger.out


@given(
    st.lists(st.tuples(st.binary(max_size=30), st.integers(0, 3)), max_size=20),
    st.booleans(),
)
@settings(max_examples=examples(60))
def test_no_bytes_lose_a_descriptor_or_raise_anything_but_a_protocol_error(
    pieces: list[tuple[bytes, int]], valid: bool
) -> None:
    ledger = Ledger()
    parser, made = Parser(), Backend(features=0, protocol_features=PROTOCOL, queues=2)
    try:
        for piece, fds in pieces:
            data = struct.pack("=III", len(piece), 1, len(piece)) + piece if valid else piece
            parser.feed(data, ledger.make(fds))
            while (got := parser.next_message()) is not None:
                handled = made.receive(got)
                for event in handled.events:
                    ledger.back_in(event)
                ledger.back(handled.close)
    except RemoteProtocolError:
        pass
    ledger.back([*parser.release(), *made.release()])
    assert not ledger.out


@given(
    st.integers(0, 50),
    st.binary(max_size=20),
    st.integers(0, 15),
    st.sampled_from(range(len(CONVERSATION))),
)
def test_no_reply_raises_anything_but_a_protocol_error(
    request: int, payload: bytes, flags: int, number: int
) -> None:
    got = message(request, payload, flags=flags)
    front = asked(CONVERSATION[number][0])
    for receive in (front.receive, front.receive_request, backend().channel.receive):
        try:
            receive(got)
        except RemoteProtocolError:
            continue

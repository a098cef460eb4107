"""Who may send next: control first, then data in turns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
import trio
import trio.testing

from vconfs.link._sender import Sender
from vconfs.link.link import Link
from vconfs.protocol.events import Buffer, Message


class FakeEnd:
    header_size = 2

    def data_queue(self, port_id: int) -> int:
        return 1

    def data_header(self, port_id: int, size: int) -> bytes:
        return bytes([port_id, size])


class FakeLink(Link):
    """Has `free` buffers of 10 bytes on each queue."""

    features = 0
    config = b""
    in_flight = 0

    def __init__(self, free: int) -> None:
        self.free: dict[int, int] = defaultdict(lambda: free)
        self.sent: list[bytes] = []
        self.flushed = 0
        self.reasons: list[str] = []
        self.owner = self  # type: ignore[assignment]

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)

    def room_for(self, queue: int, header_size: int) -> int:
        return self.free[queue] * (10 - header_size)

    def find_buffer(self, queue: int, wanted: int) -> int:
        return 10 if self.free[queue] else 0

    def send(
        self,
        queue: int,
        header: bytes,
        data: Buffer,
        seen: Callable[[], None] | None = None,
        *,
        port_id: int | None = None,
    ) -> int:
        assert self.free[queue]
        data = data[: 10 - len(header)]
        self.free[queue] -= 1
        self.sent.append(header + bytes(data))
        return len(data)

    def receive(self, queue: int) -> memoryview | None:
        return None

    def again(self, queue: int) -> None: ...
    def done(self, queue: int) -> None: ...
    def withhold(self, queue: int) -> None: ...
    def release(self, queue: int) -> None: ...

    def flush(self, queue: int) -> None:
        self.flushed += 1


def always() -> bool:
    return True


def test_data_is_cut_into_buffers_and_the_first_has_its_size() -> None:
    link = FakeLink(free=10)
    sender = Sender(link, FakeEnd())
    assert sender.send_nowait(5, b"0123456789abcdefXY") == 18
    assert link.sent == [b"\x05\x1201234567", b"\x05\x0089abcdef", b"\x05\x00XY"]
    assert link.flushed == 1


def test_no_data_makes_no_buffer() -> None:
    link = FakeLink(free=10)
    assert Sender(link, FakeEnd()).send_nowait(5, b"") == 0
    assert link.sent == []


def test_a_short_send_says_the_size_that_was_taken() -> None:
    link = FakeLink(free=1)
    sender = Sender(link, FakeEnd())
    assert sender.send_nowait(5, b"0123456789") == 8
    assert link.sent == [b"\x05\x0801234567"]
    assert not sender.has_room(5)
    with pytest.raises(trio.WouldBlock):
        sender.send_nowait(5, b"89")


def test_control_goes_before_data_when_room_comes() -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    sender.post(Message(1, b"first"))
    sender.post(Message(1, b"second"))
    link.free[1] = 1
    with pytest.raises(trio.WouldBlock):
        sender.send_nowait(5, b"data")
    sender.room(1)
    assert link.sent == [b"first"]
    link.free[1] = 2
    sender.room(1)
    assert sender.send_nowait(5, b"data") == 4
    assert link.sent == [b"first", b"second", b"\x05\x04data"]


async def test_waiting_senders_take_turns_of_one_helping_each() -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())

    async def send_all(port_id: int, data: bytes) -> None:
        while data:
            data = data[await sender.send(port_id, data, always) :]

    async with trio.open_nursery() as nursery:
        for port_id in (1, 2, 3):
            nursery.start_soon(send_all, port_id, b"x" * 16)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(6):
            link.free[1] = 1
            sender.room(1)
            await trio.testing.wait_all_tasks_blocked()
    assert [buffer[0] for buffer in link.sent] == [1, 2, 3, 1, 2, 3]


async def test_a_sender_that_is_no_longer_wanted_gives_up() -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    wanted = True
    sent: list[int] = []

    async def send() -> None:
        sent.append(await sender.send(1, b"x", lambda: wanted))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        wanted = False
        sender.nudge(1)
    assert sent == [0]


async def test_closing_ends_every_wait() -> None:
    sender = Sender(FakeLink(free=0), FakeEnd())
    sent: list[int] = []

    async def send() -> None:
        sent.append(await sender.send(1, b"x", always))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        sender.close()
    assert sent == [0, 0]


async def test_a_cancelled_sender_passes_its_turn() -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0):
            await sender.send(1, b"x", always)
        nursery.start_soon(sender.send, 2, b"y", always)
        await trio.testing.wait_all_tasks_blocked()
        link.free[1] = 1
        sender.room(1)
    assert link.sent == [b"\x02\x01y"]


@pytest.mark.parametrize("behind", [None, 1])
async def test_a_peer_that_takes_no_control_messages_is_lost_before_memory_is(
    behind: int | None,
) -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    sender.deposit(1, b"data")
    for _ in range(10_000):
        sender.post(Message(1, bytes(4000)), behind=behind)
        if link.reasons:
            break
    assert link.reasons == ["the peer takes no control messages"]


def test_the_overhead_of_small_control_messages_is_bounded() -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    message = Message(1, bytes(16))
    for _ in range((32 << 20) // 80):
        sender.post(message)
    assert link.reasons == []
    sender.post(message)
    assert link.reasons == ["the peer takes no control messages"]


def test_a_peer_whose_buffers_are_too_small_for_a_control_message_is_lost() -> None:
    link = FakeLink(free=1)
    sender = Sender(link, FakeEnd())
    sender.post(Message(1, bytes(11)))
    assert link.reasons == ["the peer's buffers of 10 bytes are too small"]


# --- fairness -----------------------------------------------------------------------------


async def make_room(link: FakeLink, sender: Sender, buffers: int = 1) -> None:
    link.free[1] += buffers
    sender.room(1)
    await trio.testing.wait_all_tasks_blocked()


async def flood(sender: Sender, port_id: int) -> None:
    while True:
        await sender.send(port_id, b"x" * 8, always)


@pytest.mark.parametrize("flooders", [1, 7, 100])
async def test_one_message_among_many_that_flood_waits_for_one_turn_of_each(
    flooders: int, nursery: trio.Nursery
) -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    for port_id in range(flooders):
        nursery.start_soon(flood, sender, port_id)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(5):
        link.sent.clear()
        nursery.start_soon(sender.send, 200, b"hello", always)
        await trio.testing.wait_all_tasks_blocked()
        while not link.sent or link.sent[-1][0] != 200:
            await make_room(link, sender)
        assert len(link.sent) <= flooders + 1


async def test_room_for_several_is_used_by_several_at_once(nursery: trio.Nursery) -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    for port_id in range(6):
        nursery.start_soon(flood, sender, port_id)
        await trio.testing.wait_all_tasks_blocked()
    link.free[1] = 4
    sender.room(1)
    assert [buffer[0] for buffer in link.sent] == [0, 1, 2, 3]


async def test_sources_and_waiting_senders_share_the_room(nursery: trio.Nursery) -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    for port_id in (1, 2):
        nursery.start_soon(flood, sender, port_id)
    await trio.testing.wait_all_tasks_blocked()
    for port_id in (3, 4):
        sender.offer(port_id, lambda room: bytes(min(room, 8)))
    for _ in range(12):
        await make_room(link, sender)
    counts = [sum(buffer[0] == port_id for buffer in link.sent) for port_id in (1, 2, 3, 4)]
    assert counts == [3, 3, 3, 3]


async def test_a_new_sender_neither_passes_a_source_nor_waits_for_it() -> None:
    link = FakeLink(free=1)
    sender = Sender(link, FakeEnd())
    throttled = False
    sender.offer(3, lambda room: b"" if throttled else b"zero")
    link.free[1] = 2
    assert sender.send_nowait(1, b"a") == 1
    throttled = True
    link.free[1] = 2
    assert sender.send_nowait(1, b"b") == 1
    assert [buffer[0] for buffer in link.sent] == [3, 3, 1, 1]
    assert sender.has_room(1)


async def test_a_source_that_gave_nothing_can_be_offered_again() -> None:
    link = FakeLink(free=9)
    sender = Sender(link, FakeEnd())
    given: list[bytes] = [b"", b"first", b"", b"second"]

    def give(room: int) -> bytes:
        return given.pop() if given else b""

    for _ in range(3):
        sender.offer(3, give)
    sender.room(1)
    assert link.sent == [b"\x03\x06second", b"\x03\x05first"]


@pytest.mark.parametrize("place", ["first", "in the middle", "last"])
async def test_a_throttled_port_stops_no_other(place: str, nursery: trio.Nursery) -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    ids = {"first": [9, 1, 2], "in the middle": [1, 9, 2], "last": [1, 2, 9]}[place]
    for port_id in ids:
        if port_id == 9:
            nursery.start_soon(sender.send, port_id, b"never", lambda: sender.has_room(0))
        else:
            nursery.start_soon(sender.send, port_id, b"x", always)
        await trio.testing.wait_all_tasks_blocked()
    await make_room(link, sender, 2)
    assert [buffer[0] for buffer in link.sent] == [1, 2]


async def test_a_control_message_goes_before_all_waiting_senders(nursery: trio.Nursery) -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    for port_id in range(20):
        nursery.start_soon(flood, sender, port_id)
    await trio.testing.wait_all_tasks_blocked()
    sender.post(Message(1, b"control"))
    await make_room(link, sender, 2)
    assert link.sent[0] == b"control"


# --- who does not wait --------------------------------------------------------------------


async def test_data_left_by_a_nonblocking_writer_has_its_turn(nursery: trio.Nursery) -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    for port_id in range(20):
        nursery.start_soon(flood, sender, port_id)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(5):
        link.sent.clear()
        with pytest.raises(trio.WouldBlock):
            sender.send_nowait(200, b"hello")
        assert sender.deposit(200, b"hello") == 5
        assert not sender.can_deposit(200)
        while not link.sent or link.sent[-1][0] != 200:
            await make_room(link, sender)
        assert len(link.sent) == 21
        assert sender.can_deposit(200)


async def test_no_data_of_its_port_passes_a_deposit() -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    assert sender.deposit(1, b"first of 3 buffers left") == 23
    with pytest.raises(trio.WouldBlock):
        sender.deposit(1, b"more")
    sender.post(Message(1, b"close"), behind=1)
    sender.post(Message(1, b"open"), behind=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send, 1, b"waits", always)
        nursery.start_soon(sender.send, 2, b"other", always)
        await trio.testing.wait_all_tasks_blocked()
        link.free[1] = 1
        sender.room(1)
        with pytest.raises(trio.WouldBlock):
            sender.send_nowait(1, b"hasty")
        sender.post(Message(1, b"urgent"), behind=2)
        for _ in range(8):
            await make_room(link, sender)
    assert [bytes(buffer) for buffer in link.sent if buffer[0] != 2] == [
        b"\x01\x08first of",
        b"urgent",
        b"\x01\x08 3 buffe",
        b"\x01\x07rs left",
        b"close",
        b"open",
        b"\x01\x05waits",
    ]


async def test_a_writer_that_does_not_wait_can_deposit_little_and_only_on_a_link() -> None:
    sender = Sender(FakeLink(free=0), FakeEnd())
    assert sender.deposit(1, bytes(1 << 20)) == 4096
    sender.close()
    with pytest.raises(trio.WouldBlock):
        sender.deposit(2, b"late")


async def test_the_deposit_of_a_port_that_is_gone_does_not_reach_the_next_one() -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    assert sender.deposit(1, b"old") == 3
    sender.post(Message(1, b"close"), behind=1)
    sender.forget(1)
    link.free[1] = 5
    sender.room(1)
    assert link.sent == []
    assert sender.send_nowait(1, b"new") == 3
    assert link.sent == [b"\x01\x03new"]

"""Who may send next: control first, then data in turns."""

from __future__ import annotations

from collections import defaultdict

import pytest
import trio
import trio.testing

from vconfs.link import Link
from vconfs.protocol.events import Buffer, Message
from vconfs.sender import Sender


class FakeEnd:
    header_size = 2

    def data_queue(self, id: int) -> int:
        return 1

    def data_header(self, id: int, size: int) -> bytes:
        return bytes([id, size])


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

    def capacity(self, queue: int) -> int:
        return 10 if self.free[queue] else 0

    def send(self, queue: int, header: bytes, data: Buffer) -> None:
        assert len(header) + len(data) <= self.capacity(queue)
        self.free[queue] -= 1
        self.sent.append(header + bytes(data))

    def receive(self, queue: int) -> memoryview | None:
        return None

    def done(self, queue: int) -> None: ...

    def flush(self, queue: int) -> None:
        self.flushed += 1


def always() -> bool:
    return True


def test_data_is_cut_into_buffers_and_its_size_stands_in_the_first() -> None:
    link = FakeLink(free=10)
    sender = Sender(link, FakeEnd())
    assert sender.send_nowait(5, b"0123456789abcdefXY") == 18
    assert link.sent == [b"\x05\x1201234567", b"\x05\x0089abcdef", b"\x05\x00XY"]
    assert link.flushed == 1


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

    async def send_all(id: int, data: bytes) -> None:
        while data:
            data = data[await sender.send(id, data, always) :]

    async with trio.open_nursery() as nursery:
        for id in (1, 2, 3):
            nursery.start_soon(send_all, id, b"x" * 16)
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


def test_a_peer_that_takes_no_control_messages_is_lost_before_memory_is() -> None:
    link = FakeLink(free=0)
    sender = Sender(link, FakeEnd())
    for _ in range(10_000):
        sender.post(Message(1, bytes(4000)))
        if link.reasons:
            break
    assert link.reasons == ["the peer takes no control messages"]


def test_a_peer_whose_buffers_are_too_small_for_a_control_message_is_lost() -> None:
    link = FakeLink(free=1)
    sender = Sender(link, FakeEnd())
    sender.post(Message(1, bytes(11)))
    assert link.reasons == ["the peer's buffers of 10 bytes are too small"]

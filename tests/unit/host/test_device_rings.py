"""The host end's link over rings, with the test as the driver."""

from __future__ import annotations

import pytest
import trio.testing

from tests.support.looks import steady_looks
from vconfs.host.rings import DeviceLink
from vconfs.protocol.virtqueue import DeviceQueue, DriverQueue, GuestMemory, Layout

SIZE, BUFFER = 4, 64


class Owner:
    """Notes nothing: the tests look at the rings."""

    def received(self, queue: int) -> None: ...
    def room(self, queue: int) -> None: ...
    def config_changed(self) -> None: ...

    def lost(self, reason: str) -> None:
        raise AssertionError(reason)

    def left(self) -> None: ...


class Guest:
    """The driver's side of queue 0, whose buffers the host fills."""

    def __init__(self, *, event_idx: bool = False) -> None:
        layout = Layout.at(SIZE, 0)
        memory = memoryview(bytearray(4096))
        self.driver = DriverQueue(memory, layout, event_idx=event_idx)
        for i in range(SIZE):
            self.driver.add(2048 + BUFFER * i, BUFFER, writable=True)
        ring = DeviceQueue(GuestMemory([(0, memory)]), layout, event_idx=event_idx)
        self.link = DeviceLink({0: ring}, features=0, call=lambda queue: None, header_size=0)
        self.link.owner = Owner()
        self.offer()

    def offer(self) -> None:
        """Show what was offered; the host is notified if it asks for that."""
        if self.driver.publish():
            self.link.kicked(0)

    def take(self, count: int = 1) -> list[int]:
        """Take buffers that the host has used."""
        return [head for head, _ in self.driver.pop_many(count)]

    def give_back(self, heads: list[int]) -> None:
        self.driver.offer_many(heads, BUFFER)
        self.offer()


@pytest.mark.parametrize("event_idx", [False, True])
async def test_a_message_was_seen_when_its_buffer_is_offered_again(event_idx: bool) -> None:
    guest = Guest(event_idx=event_idx)
    seen: list[str] = []
    for name in ("first", "second"):
        assert guest.link.find_buffer(0, 1) == BUFFER
        guest.link.send(0, name.encode(), b"", lambda name=name: seen.append(name))  # type: ignore[misc]
    guest.link.flush(0)
    (first,), (second,) = guest.take(), guest.take()
    await trio.testing.wait_all_tasks_blocked()
    assert seen == []
    guest.give_back([second])
    assert seen == ["second"]
    guest.give_back([first])
    assert seen == ["second", "first"]


@pytest.mark.parametrize("event_idx", [False, True])
async def test_a_buffer_with_one_message_after_the_other(event_idx: bool) -> None:
    """The host fills a buffer anew before it has told anyone that the first message was seen."""
    guest = Guest(event_idx=event_idx)
    seen: list[int] = []
    for number in range(3 * SIZE):
        if number >= SIZE:
            guest.driver.offer_many(guest.take(), BUFFER)
            guest.driver.publish()  # and the kick is late
        assert guest.link.find_buffer(0, 1) == BUFFER
        guest.link.send(0, b"stop", b"", lambda number=number: seen.append(number))  # type: ignore[misc]
        guest.link.flush(0)
    await trio.testing.wait_all_tasks_blocked()
    assert seen == list(range(2 * SIZE))
    guest.give_back(guest.take(SIZE))
    guest.link.kicked(0)
    assert seen == list(range(3 * SIZE))


async def test_what_was_seen_is_told_once_although_its_queue_is_stopped_meanwhile() -> None:
    """Or else the data that is withheld until then would be withheld for ever."""
    guest = Guest()
    seen: list[int] = []

    def send(number: int) -> None:
        assert guest.link.find_buffer(0, 1) == BUFFER
        guest.link.send(0, b"stop", b"", lambda: seen.append(number))
        guest.link.flush(0)

    for number in range(SIZE):
        send(number)
    guest.driver.offer_many(guest.take(), BUFFER)
    guest.driver.publish()  # and the kick is late
    send(SIZE)  # in the buffer of the first message, which was seen
    guest.link.stop_queue(0)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(seen) == list(range(SIZE + 1))


class Sender:
    """The driver's side of queue 1, on which the guest sends, and an owner that takes it all."""

    def __init__(self, *, event_idx: bool) -> None:
        layout = Layout.at(SIZE, 0)
        memory = memoryview(bytearray(1 << 14))
        self.driver = DriverQueue(memory, layout, event_idx=event_idx)
        self.ring = DeviceQueue(GuestMemory([(0, memory)]), layout, event_idx=event_idx)
        self.link = DeviceLink({1: self.ring}, features=0, call=lambda queue: None, header_size=0)
        self.link.owner = self
        self.came = 0
        self.takes = True
        self.wakes = False

    def send(self) -> bool:
        """Send a buffer; return True if the host wants to be notified."""
        while self.driver.pop_used() is not None:
            pass
        self.driver.add(4096, 4096, writable=False)
        return self.driver.publish()

    def received(self, queue: int) -> None:
        while self.takes and self.link.receive(queue) is not None:
            self.came += 1
            self.link.done(queue)
            self.link.looks.polling.others_wait = self.wakes
        self.link.flush(queue)

    def room(self, queue: int) -> None: ...
    def config_changed(self) -> None: ...

    def lost(self, reason: str) -> None:
        raise AssertionError(reason)

    def left(self) -> None: ...


@pytest.mark.parametrize("event_idx", [False, True])
async def test_a_guest_that_keeps_sending_need_not_notify(event_idx: bool) -> None:
    guest = Sender(event_idx=event_idx)
    sent = [guest.send()]

    def let_the_guest_run() -> None:
        if len(sent) < 6:
            sent.append(guest.send())

    guest.link.looks = steady_looks(let_the_guest_run)
    guest.link.kicked_all([1])
    assert guest.came == 6
    assert sent == [True] + [False] * 5
    assert guest.send()
    guest.link.kicked_all([1])
    assert guest.came == 7


@pytest.mark.parametrize("event_idx", [False, True])
async def test_what_comes_before_kicks_are_requested_again_is_taken(
    event_idx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = Sender(event_idx=event_idx)
    request = guest.ring.request_kicks

    def request_late() -> bool:
        assert not guest.send()
        return request()

    guest.send()
    monkeypatch.setattr(guest.ring, "request_kicks", request_late)
    guest.link.kicked_all([1])
    assert guest.came == 2


async def test_buffers_that_the_owner_leaves_are_not_looked_at_for_ever() -> None:
    guest = Sender(event_idx=True)
    guest.takes = False
    guest.send()
    guest.link.kicked_all([1])
    assert guest.came == 0
    assert guest.ring.has_available()


async def test_a_guest_that_wakes_a_task_is_looked_at_only_once_more() -> None:
    looks = 0

    def let_others_run() -> None:
        nonlocal looks
        looks += 1

    def looks_after_a_buffer(*, wakes: bool) -> int:
        nonlocal looks
        guest, looks = Sender(event_idx=True), 0
        guest.wakes = wakes
        guest.link.looks = steady_looks(let_others_run)
        guest.send()
        guest.link.kicked_all([1])
        return looks

    assert looks_after_a_buffer(wakes=False) > 1
    assert looks_after_a_buffer(wakes=True) == 1

"""The guest end's link over rings, with the test as the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise

import pytest
import trio
import trio.testing

from tests.support.looks import steady_looks
from vconfs.device._device_memory import DeviceMemory, Run
from vconfs.device._queue_shapes import RECEIVE_QUEUE
from vconfs.device._rings import RingLink
from vconfs.device._slots import QueueSpec, lay_out, memory_for, set_up_queues
from vconfs.device.pci import plan_queues
from vconfs.link.busy_polling import BusyPolling, Looks
from vconfs.link.byte_queue import Lent
from vconfs.protocol.virtqueue import DeviceQueue, GuestMemory

SPECS = {0: QueueSpec(8, 4096), 1: QueueSpec(8, 4096, 2), 2: QueueSpec(4, 64), 3: QueueSpec(4, 64)}
BASE = 1 << 32


class Owner:
    """Notes what the link says."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int]] = []

    def received(self, queue: int) -> None:
        self.said.append(("received", queue))

    def room(self, queue: int) -> None:
        self.said.append(("room", queue))

    def config_changed(self) -> None:
        self.said.append(("config", -1))

    def lost(self, reason: str) -> None:
        self.said.append((reason, -1))

    def left(self) -> None: ...


def of_size(size: int) -> DeviceMemory:
    """Return memory to plan with."""
    return DeviceMemory(memoryview(b""), [Run(0, size, 0)])


class Ends:
    """A link and the device's side of its rings."""

    def __init__(
        self,
        filling: bytes = b"\0",
        specs: Mapping[int, QueueSpec] = SPECS,
        *,
        event_idx: bool = False,
        beside: bool = False,
    ) -> None:
        size = sum(spec.memory for spec in specs.values())
        self.memory = memoryview(bytearray(filling * size))
        self.kicks: list[int] = []
        self.interrupts = 0
        self.link = RingLink(
            dict(lay_out(DeviceMemory.at(self.memory, BASE), specs, event_idx=event_idx)),
            features=0,
            kick=self.kicks.append,
            read_config=bytes,
            device_beside=beside,
        )
        self.owner = self.link.owner = Owner()
        memory = GuestMemory([(BASE, self.memory)])
        self.device = {}
        for queue in specs:
            at = self.link.layout(queue)
            shifted = type(at)(at.size, BASE + at.desc, BASE + at.avail, BASE + at.used)
            self.device[queue] = DeviceQueue(memory, shifted, event_idx=event_idx)

    def use(self, queue: int) -> bytes:
        """As the device, use one buffer and return its data."""
        chain = self.device[queue].pop()
        assert chain is not None
        data = b"".join(chain.readable)
        for part in chain.writable:
            part[:3] = b"abc"
        self.device[queue].push(chain.head, 3 if chain.writable else 0)
        self.interrupts += self.device[queue].publish()
        return data


@pytest.mark.parametrize("filling", [b"\0", b"\xa5"])
def test_memory_that_was_used_before_does_no_harm(filling: bytes) -> None:
    ends = Ends(filling)
    ends.link.start()
    ends.link.send(1, b"he", b"llo")
    ends.link.flush(1)
    assert ends.kicks == [0, 2, 1]
    assert ends.use(1) == b"hello"
    ends.use(0)
    received = ends.link.receive(0)
    assert bytes(received or b"") == b"abc"
    assert ends.link.receive(0) is None


def test_fewer_buffers_than_descriptors() -> None:
    ends = Ends()
    link = ends.link
    assert link.find_room(1, 10) == 4086  # the last one is for control messages
    for _ in range(2):
        assert link.find_buffer(1, 1) == 4096
        link.send(1, b"", b"x")
        assert link.find_room(1, 0) == 0
    assert link.find_buffer(1, 1) == 0
    link.flush(1)
    ends.use(1)
    assert link.find_buffer(1, 1) == 4096
    assert link.find_room(1, 0) == 0
    ends.use(1)
    assert link.find_room(1, 0) == 4096


def test_an_interrupt_is_for_the_queues_that_show_it() -> None:
    ends = Ends()
    ends.link.start()
    ends.link.interrupt_used(SPECS)
    assert ends.owner.said == []
    ends.use(2)
    ends.link.interrupt_used([0, 1])
    assert ends.owner.said == []
    ends.link.interrupt_used(SPECS)
    assert ends.owner.said == [("received", 2)]


#: The queues of QEMU's largest console, which has 511 ports.
MANY = {n: QueueSpec(4, 64) for n in range(1024)}


async def test_other_tasks_run_while_many_queues_are_set_up() -> None:
    memory = memoryview(bytearray(memory_for(MANY.values())))
    turns = [0]
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def others() -> None:
            while True:
                await trio.lowlevel.checkpoint()
                turns[0] += 1

        queues = await set_up_queues(DeviceMemory.at(memory), MANY)
        nursery.cancel_scope.cancel()
    assert turns[0] >= len(MANY) // 16
    assert list(queues) == list(MANY)
    assert all(queues[n].layout.desc == n * MANY[0].memory for n in MANY)


async def test_many_queues_are_offered_in_portions() -> None:
    ends = Ends(specs=MANY)
    ends.link.start()
    offered = [len(ends.kicks)]
    while len(ends.kicks) < len(MANY) // 2:
        await trio.lowlevel.checkpoint()
        offered.append(len(ends.kicks))
    assert max(after - before for before, after in pairwise([0, *offered])) <= 512
    assert ends.kicks == list(range(0, len(MANY), 2))


async def interrupted() -> Ends:
    """Return a link that was just told that each of its many queues has a used buffer."""
    ends = Ends(specs=MANY)
    ends.link.start()
    await trio.testing.wait_all_tasks_blocked()
    for queue in range(0, len(MANY), 2):
        ends.use(queue)
    ends.link.interrupt_used(MANY)
    return ends


async def test_used_buffers_of_many_queues_are_handled_in_portions() -> None:
    ends = await interrupted()
    handled = [0, len(ends.owner.said)]
    while handled[-1] < len(MANY) // 2:
        await trio.lowlevel.checkpoint()
        handled.append(len(ends.owner.said))
    assert max(after - before for before, after in pairwise(handled)) <= 64
    assert ends.owner.said == [("received", n) for n in range(0, len(MANY), 2)]


async def test_a_link_that_was_closed_handles_no_more_interrupts() -> None:
    ends = await interrupted()
    said = len(ends.owner.said)
    ends.link.close()
    await trio.testing.wait_all_tasks_blocked()
    assert len(ends.owner.said) == said


def test_the_most_queues_are_planned_at_once() -> None:
    """There is a handful of shapes, however many queues there are."""
    begun = time.process_time()
    specs = plan_queues([1024] * 65534, 2, of_size(2 << 30))
    assert time.process_time() - begun < 0.5  # it took 1.6 s when each had a shape of its own
    assert memory_for(specs.values()) <= 2 << 30


def test_room_is_reported_even_if_its_buffers_were_seen_before() -> None:
    ends = Ends()
    for _ in range(2):
        ends.link.send(1, b"", b"x")
    ends.link.flush(1)
    assert ends.link.find_room(1, 0) == 0  # a sender waits now
    ends.use(1)
    ends.use(1)
    assert ends.link.find_room(1, 0) == 4096  # another sender looked
    ends.link.interrupt_used(SPECS)
    assert ends.owner.said == [("room", 1)]
    ends.link.interrupt_used(SPECS)
    assert ends.owner.said == [("room", 1)]


def test_what_was_sent_is_wiped() -> None:
    ends = Ends()
    ends.link.send(1, b"", b"a secret")
    ends.link.flush(1)
    ends.use(1)
    assert b"a secret" in bytes(ends.memory)
    ends.link.interrupt_used([1])
    assert b"a secret" not in bytes(ends.memory)


@pytest.mark.parametrize("event_idx", [False, True])
def test_sending_asks_for_an_interrupt_only_when_there_is_no_room(event_idx: bool) -> None:
    ends = Ends(event_idx=event_idx)
    ends.link.start()
    interrupts = []
    for _ in range(100):
        assert ends.link.find_buffer(1, 1)
        ends.link.send(1, b"", b"x")
        ends.link.flush(1)
        ends.use(1)
        interrupts.append(ends.interrupts)
    assert interrupts == [0] * 100
    while ends.link.find_buffer(1, 1):
        ends.link.send(1, b"", b"x")
    ends.link.flush(1)
    ends.use(1)
    assert ends.interrupts == interrupts[-1] + 1
    ends.link.interrupt(1)
    assert ends.owner.said == [("room", 1)]
    ends.use(1)
    assert ends.interrupts == interrupts[-1] + 1


FOUR = {0: QueueSpec(8, 4096), 1: QueueSpec(8, 4096)}


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("used_before", [0, 1, 2])
async def test_an_awaited_buffer_interrupts_even_if_the_device_wants_no_kicks(
    event_idx: bool, used_before: int
) -> None:
    ends = Ends(specs=FOUR, event_idx=event_idx)
    ends.device[1].suppress_kicks()
    for _ in range(2):
        ends.link.find_buffer(1, 1)
        ends.link.send(1, b"", b"data")
        ends.link.flush(1)
    for _ in range(used_before):
        ends.use(1)
    before = ends.interrupts
    seen: list[str] = []
    ends.link.find_buffer(1, 1)
    ends.link.send(1, b"stop", b"", lambda: seen.append("stop"))
    ends.link.flush(1)
    while ends.use(1) != b"stop":
        pass
    assert ends.interrupts > before
    ends.link.interrupt(1)
    assert seen == ["stop"]


def test_a_device_that_answers_the_kick_at_once_has_its_slots_wiped_at_once() -> None:
    ends = Ends()

    def use(queue: int) -> None:
        ends.use(queue)

    ends.link._kick = use
    ends.link.send(1, b"", b"a secret")
    ends.link.flush(1)
    assert b"a secret" not in bytes(ends.memory)


PARTS = {**SPECS, 1: QueueSpec(8, 4096, 6, 3)}


def test_one_buffer_of_several_slots() -> None:
    ends = Ends(specs=PARTS)
    data = bytes(range(256)) * 48
    assert ends.link.find_buffer(1, 1) == 3 * 4096
    ends.link.send(1, b"head", data[4:])
    ends.link.send(1, b"", data[:4097])
    assert ends.link.find_buffer(1, 1) == 4096
    ends.link.send(1, b"he", b"llo")
    ends.link.flush(1)
    assert ends.use(1) == b"head" + data[4:]
    assert ends.use(1) == data[:4097]
    assert ends.use(1) == b"hello"
    assert ends.link.find_room(1, 0) == 5 * 4096
    assert ends.link.find_buffer(1, 1) == 3 * 4096
    assert ends.memory[ends.link.layout(2).desc - 6 * 4096 :][: 6 * 4096] == bytes(6 * 4096)


def test_buffers_of_several_slots_are_used_in_any_order() -> None:
    ends = Ends(specs=PARTS)
    for round in range(50):
        first, second = bytes([round]) * 10_000, bytes([round + 100]) * 5_000
        ends.link.send(1, b"", first)
        ends.link.send(1, b"", second)
        ends.link.flush(1)
        chains = [ends.device[1].pop(), ends.device[1].pop()]
        got = [b"".join(chain.readable) for chain in chains if chain]
        assert got == [first, second]
        for chain in reversed(chains):
            assert chain is not None
            ends.device[1].push(chain.head, 0)
        ends.device[1].publish()
        assert ends.link.find_room(1, 0) == 5 * 4096


@pytest.mark.parametrize("size", [1, 2, 8, 128])
@pytest.mark.parametrize("features", [2, 2 | 1 << 28])
def test_no_buffer_has_more_parts_than_the_queue_has_descriptors(size: int, features: int) -> None:
    specs = plan_queues([size] * 6, features, of_size(63 << 20))
    for queue in (1, 5):
        assert 1 <= specs[queue].parts <= max(1, specs[queue].size // 2)
        assert (specs[queue].parts > 1) == bool(features & 1 << 28 and size > 2)


def test_small_queues_are_used_whole() -> None:
    specs = plan_queues([2, 2, 1, 1, 4, 4], 2, of_size(1 << 20))
    assert [spec.size for spec in specs.values()] == [2, 2, 1, 1, 4, 4]
    assert [spec.buffers for spec in specs.values()] == [2, 2, 1, 1, 4, 4]


def test_half_of_the_received_buffers_can_be_kept() -> None:
    ends = Ends()
    ends.link.start()
    kept: list[Lent | None] = []
    for _ in range(8):
        ends.use(0)
        assert ends.link.receive(0) is not None
        kept.append(ends.link.hold(0))
        ends.link.done(0)
    ends.link.flush(0)
    assert [it is not None for it in kept] == [True] * 4 + [False] * 4
    assert lendable(ends) == 4
    ends.kicks.clear()
    lent = [it for it in kept if it is not None]
    for it in lent:
        it.give_back()
    assert lendable(ends) == 0
    assert not ends.kicks
    lent[0].flush()
    assert lendable(ends) == 4
    assert ends.kicks


def test_received_data_begins_with_a_cache_line_and_fills_whole_pages() -> None:
    spec, header = RECEIVE_QUEUE, RECEIVE_QUEUE.header
    assert (spec.slot_size - header) % 4096 == 0
    memory = memoryview(bytearray(spec.memory))
    queues = dict(lay_out(DeviceMemory.at(memory, BASE), {0: spec}))
    slots = queues[0].slots
    assert len(slots) == spec.slots
    for slot in slots:
        assert (slot + header) % 4096 == 64
        assert slot + spec.slot_size <= len(memory)
    assert all(above - below >= spec.slot_size for above, below in pairwise(slots))


def test_a_kept_buffer_stays_as_it_is_while_others_come_and_go() -> None:
    ends = Ends()
    ends.link.start()
    ends.use(0)
    first = ends.link.receive(0)
    lent = ends.link.hold(0)
    ends.link.done(0)
    assert first is not None
    assert lent is not None
    first[:3] = b"old"
    for _ in range(100):
        ends.use(0)
        assert ends.link.receive(0) is not None
        ends.link.done(0)
        ends.link.flush(0)
    assert bytes(first[:3]) == b"old"


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_busy_device_is_looked_at_again_without_an_interrupt(event_idx: bool) -> None:
    ends = Ends(event_idx=event_idx, beside=True)
    ends.link.start()
    waits = 0

    def let_the_device_run() -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            ends.use(0)

    ends.link.looks = steady_looks(let_the_device_run)
    assert not ends.link.look_again(0)  # nothing has come before
    assert waits == 0
    receive_much(ends)
    before = ends.interrupts
    assert ends.link.look_again(0)
    assert waits == 3
    assert ends.owner.said == [("received", 0)]
    assert ends.link.receive(0) is not None
    assert ends.interrupts == before
    ends.use(0)
    assert ends.interrupts == before + 1


def test_a_device_that_is_not_busy_any_more_is_not_waited_for() -> None:
    ends, now = Ends(beside=True), 0.0
    ends.link.start()

    def wait() -> None:
        nonlocal now
        now += 1e-4

    ends.link.looks = Looks(BusyPolling(lambda: now, wait))
    receive_much(ends)
    assert not ends.link.look_again(0)
    assert now == pytest.approx(0.001, abs=2e-4)
    before = ends.interrupts
    ends.use(0)
    assert ends.interrupts == before + 1
    assert not ends.link.look_again(9)


def test_a_device_that_sends_now_and_then_is_rarely_waited_for() -> None:
    ends, now, looks = Ends(beside=True), 0.0, 0
    ends.link.start()

    def wait() -> None:
        nonlocal now, looks
        now += 1.0
        looks += 1

    ends.link.looks = Looks(BusyPolling(lambda: now, wait))
    for _ in range(1000):
        now += 1.0
        receive_much(ends)
        assert not ends.link.look_again(0)
    assert looks < 25


def test_a_device_of_this_process_is_not_looked_at_again() -> None:
    ends = Ends()
    ends.link.start()
    receive_much(ends)
    ends.use(0)
    assert not ends.link.look_again(0)


def receive_much(ends: Ends) -> None:
    """Receive a whole buffer of data."""
    chain = ends.device[0].pop()
    assert chain is not None
    ends.device[0].push(chain.head, 4096)
    ends.interrupts += ends.device[0].publish()
    assert len(ends.link.receive(0) or b"") == 4096
    ends.link.done(0)
    ends.link.flush(0)


def lendable(ends: Ends) -> int:
    """Return how many empty buffers the device finds."""
    count = 0
    while ends.device[0].pop() is not None:
        count += 1
    return count

"""Driver side and device side of a split virtqueue, against each other and against bad input."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.chaining_driver import ChainingDriver
from tests.support.examples import examples
from vconfs.protocol.errors import LocalProtocolError, RemoteProtocolError
from vconfs.protocol.virtqueue import (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    PARTS_MAX,
    DeviceQueue,
    GuestMemory,
    Layout,
)

BASE = 0x10000
SIZE = 8
MEMORY = 1 << 14
DATA = 4096
TABLES = 3 * 4096  # indirect tables of the random interleavings


class Pair:
    """Both sides of one queue."""

    def __init__(
        self,
        size: int = SIZE,
        *,
        event_idx: bool = False,
        start: int = 0,
        memory: int = MEMORY,
    ) -> None:
        self.memory = memoryview(bytearray(memory))
        self.layout = Layout.at(size, 0)
        at = self.layout
        addresses = Layout(size, BASE + at.desc, BASE + at.avail, BASE + at.used)
        self.driver = ChainingDriver(self.memory, at, base=BASE, event_idx=event_idx)
        guest = GuestMemory([(BASE, self.memory)])
        self.device = DeviceQueue(guest, addresses, event_idx=event_idx)
        for _ in range(start):  # indices count up for ever: begin near their end
            self.driver.add(DATA, 1, writable=False)
            self.driver.publish()
            self.device.push(self.device.pop().head, 0)  # type: ignore[union-attr]
            self.device.publish()
            self.driver.pop_used()

    def poke16(self, offset: int, value: int) -> None:
        struct.pack_into("<H", self.memory, offset, value)

    def poke32(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.memory, offset, value)

    def descriptor(self, number: int, address: int, length: int, flags: int, after: int) -> None:
        struct.pack_into(
            "<QIHH", self.memory, self.layout.desc + 16 * number, address, length, flags, after
        )

    def offer(self, head: int) -> None:
        """Offer a head as the driver would, without the driver."""
        self.poke16(self.layout.avail + 4, head)
        self.poke16(self.layout.avail + 2, 1)


def test_layout_follows_the_alignment_of_the_standard() -> None:
    layout = Layout.at(4, 3)
    assert layout == Layout(size=4, desc=16, avail=80, used=96)
    assert layout.end == 96 + 6 + 32


@pytest.mark.parametrize("size", [0, 3, 65536, -4])
def test_a_size_that_is_not_a_power_of_two_is_refused(size: int) -> None:
    with pytest.raises(LocalProtocolError, match="power of two"):
        Layout.at(size, 0)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("start", [0, 65533])
def test_buffers_go_there_and_back(event_idx: bool, start: int) -> None:
    pair = Pair(event_idx=event_idx, start=start)
    pair.memory[DATA : DATA + 5] = b"hello"
    sent = pair.driver.add(DATA, 5, writable=False)
    lent = pair.driver.add(DATA + 100, 50, writable=True)
    assert pair.device.pop() is None  # nothing is seen before it is published
    assert pair.driver.publish()
    chain = pair.device.pop()
    assert chain is not None
    assert (chain.head, bytes(chain.readable[0]), chain.writable) == (sent, b"hello", [])
    empty = pair.device.pop()
    assert empty is not None
    assert (empty.head, empty.writable_length) == (lent, 50)
    empty.writable[0][:3] = b"abc"
    pair.device.push(empty.head, 3)
    pair.device.push(chain.head, 0)
    assert pair.driver.pop_used() is None
    assert pair.device.publish()
    assert pair.driver.pop_used() == (lent, 3)
    assert pair.driver.pop_used() == (sent, 0)
    assert pair.driver.pop_used() is None
    assert pair.driver.free == SIZE
    assert bytes(pair.memory[DATA + 100 : DATA + 103]) == b"abc"


def test_a_buffer_can_be_offered_again_as_it_was() -> None:
    pair = Pair()
    head = pair.driver.add(DATA, 50, writable=True)
    pair.driver.publish()
    for written in (3, 50):
        chain = pair.device.pop()
        assert chain is not None
        assert (chain.head, chain.writable_length) == (head, 50)
        pair.device.push(head, written)
        pair.device.publish()
        assert pair.driver.pop_many(9) == [(head, written)]
        assert pair.driver.free == SIZE - 1
        pair.driver.offer_many([head], 50)
        assert pair.driver.publish()
    assert pair.driver.in_flight == 1


def test_a_chain_has_its_readable_parts_first() -> None:
    pair = Pair()
    head = pair.driver.add_chain([(DATA, 4, False), (DATA + 4, 6, False), (DATA + 10, 8, True)])
    pair.driver.publish()
    chain = pair.device.pop()
    assert chain is not None
    assert [len(part) for part in chain.readable] == [4, 6]
    assert [len(part) for part in chain.writable] == [8]
    assert (chain.readable_length, chain.writable_length) == (10, 8)
    pair.device.push(head, 8)
    pair.device.publish()
    assert pair.driver.pop_used() == (head, 8)
    assert pair.driver.free == SIZE
    with pytest.raises(LocalProtocolError, match="comes after"):
        pair.driver.add_indirect(DATA + 512, [(DATA, 4, True), (DATA, 4, False)])


def test_a_buffer_of_several_parts_needs_one_descriptor() -> None:
    pair = Pair()
    table = DATA + 512
    parts = [(DATA, 3, False), (DATA + 3, 9, False), (DATA + 64, 20, True), (DATA + 99, 1, True)]
    head = pair.driver.add_indirect(table, parts)
    assert pair.driver.free == SIZE - 1
    assert pair.driver.publish()
    chain = pair.device.pop()
    assert chain is not None
    assert chain.head == head
    assert [len(part) for part in chain.readable] == [3, 9]
    assert [len(part) for part in chain.writable] == [20, 1]
    chain.writable[1][:] = b"!"
    assert pair.memory[DATA + 99] == ord("!")
    pair.device.push(head, 21)
    pair.device.publish()
    assert pair.driver.pop_used() == (head, 21)
    assert pair.driver.free == SIZE


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "0 parts in a queue of 8"),
        ([(DATA, 1, False)] * (SIZE + 1), "9 parts in a queue of 8"),
        ([(DATA, 1, True), (DATA, 1, False)], "comes after"),
    ],
)
def test_an_impossible_table_is_the_callers_mistake(
    parts: list[tuple[int, int, bool]], message: str
) -> None:
    pair = Pair()
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match=message):
            pair.driver.add_indirect(DATA + 512, parts)
        assert pair.driver.free == SIZE
    assert not pair.driver.publish()


def test_an_indirect_table_is_followed() -> None:
    pair = Pair()
    table = DATA + 512
    struct.pack_into("<QIHH", pair.memory, table, BASE + DATA, 3, DESC_NEXT, 1)
    struct.pack_into("<QIHH", pair.memory, table + 16, BASE + DATA + 3, 9, DESC_WRITE, 0)
    pair.descriptor(2, BASE + table, 32, DESC_INDIRECT, 0)
    pair.offer(2)
    chain = pair.device.pop()
    assert chain is not None
    assert (chain.head, chain.readable_length, chain.writable_length) == (2, 3, 9)


def test_running_out_of_descriptors_is_the_callers_mistake() -> None:
    pair = Pair()
    for _ in range(SIZE):
        pair.driver.add(DATA, 1, writable=False)
    with pytest.raises(LocalProtocolError, match="no descriptor"):
        pair.driver.add(DATA, 1, writable=False)
    with pytest.raises(LocalProtocolError, match="no descriptor"):
        pair.driver.add_indirect(DATA + 512, [(DATA, 1, False)])


# --- what a device may not do -------------------------------------------------------------


def used(pair: Pair, index: int, head: int, length: int) -> None:
    pair.poke32(pair.layout.used + 4, head)
    pair.poke32(pair.layout.used + 8, length)
    pair.poke16(pair.layout.used + 2, index)


@pytest.mark.parametrize(
    ("index", "head", "length", "message"),
    [
        (3, 0, 0, r"used.idx jumped from 0 to 3 with 1 buffers"),
        (65535, 0, 0, r"used.idx jumped from 0 to 65535"),
        (1, 5, 0, "used id 5 was not in flight"),
        (1, SIZE, 0, f"used id {SIZE} was not in flight"),
        (1, 2**32 - 1, 0, "used id 4294967295 was not in flight"),
        (1, 0, 11, "used length 11 is more than the buffer's 10 bytes"),
        (1, 0, 2**32 - 1, "used length 4294967295"),
    ],
)
def test_the_driver_refuses_wrong_used_entries(
    index: int, head: int, length: int, message: str
) -> None:
    pair = Pair()
    assert pair.driver.add(DATA, 10, writable=True) == 0
    pair.driver.publish()
    used(pair, index, head, length)
    with pytest.raises(RemoteProtocolError, match=message):
        pair.driver.pop_used()


def test_the_driver_refuses_more_buffers_than_it_has_shown() -> None:
    pair = Pair()
    for _ in range(3):
        pair.driver.add(DATA, 10, writable=True)
        pair.driver.publish()
    pair.driver.add(DATA, 10, writable=True)
    used(pair, 4, 0, 0)
    with pytest.raises(RemoteProtocolError, match=r"used.idx jumped from 0 to 4 with 3 buffers"):
        pair.driver.pop_used()


def test_the_driver_refuses_a_buffer_that_is_given_back_twice() -> None:
    pair = Pair()
    pair.driver.add(DATA, 10, writable=True)
    pair.driver.add(DATA, 10, writable=True)
    pair.driver.publish()
    used(pair, 1, 0, 0)
    assert pair.driver.pop_used() == (0, 0)
    pair.poke32(pair.layout.used + 12, 0)
    pair.poke16(pair.layout.used + 2, 2)
    with pytest.raises(RemoteProtocolError, match="used id 0 was not in flight"):
        pair.driver.pop_used()


@given(
    lengths=st.lists(st.tuples(st.integers(0, 64), st.integers(0, 2**32 - 1)), max_size=SIZE),
    many=st.booleans(),
    event_idx=st.booleans(),
)
def test_a_length_counts_only_for_a_buffer_that_the_device_may_write(
    lengths: list[tuple[int, int]], many: bool, event_idx: bool
) -> None:
    """Some devices report what they read: it is ignored, as Linux does."""
    pair = Pair(event_idx=event_idx)
    driver, expected, wrong = pair.driver, [], False
    for i, (writable, reported) in enumerate(lengths):
        head = driver.add(DATA, writable or 64, writable=writable > 0)
        pair.poke32(pair.layout.used + 4 + 8 * i, head)
        pair.poke32(pair.layout.used + 8 + 8 * i, reported)
        wrong = wrong or reported > writable > 0
        if not wrong:
            expected.append((head, reported if writable else 0))
    driver.publish()
    pair.poke16(pair.layout.used + 2, len(lengths))
    got: list[tuple[int, int]] = []
    try:
        while used := driver.pop_many(SIZE) if many else [driver.pop_used()]:
            if used[-1] is None:
                break
            got += [it for it in used if it is not None]
    except RemoteProtocolError as error:
        assert wrong
        assert "is more than the buffer's" in str(error)
    else:
        assert not wrong
    assert got == expected


# --- what a driver may not do -------------------------------------------------------------


def _outside(pair: Pair) -> None:
    pair.descriptor(0, BASE + MEMORY - 4, 5, 0, 0)


def _below(pair: Pair) -> None:
    pair.descriptor(0, BASE - 1, 5, 0, 0)


def _wraps(pair: Pair) -> None:
    pair.descriptor(0, 2**64 - 4, 8, 0, 0)


def _too_long(pair: Pair) -> None:
    pair.descriptor(0, BASE, 2**32 - 1, 0, 0)


def _wild_next(pair: Pair) -> None:
    pair.descriptor(0, BASE, 1, DESC_NEXT, SIZE)


def _loop(pair: Pair) -> None:
    pair.descriptor(0, BASE, 1, DESC_NEXT, 1)
    pair.descriptor(1, BASE, 1, DESC_NEXT, 0)


def _self_loop(pair: Pair) -> None:
    pair.descriptor(0, BASE, 1, DESC_NEXT, 0)


def _readable_after_writable(pair: Pair) -> None:
    pair.descriptor(0, BASE, 1, DESC_NEXT | DESC_WRITE, 1)
    pair.descriptor(1, BASE, 1, 0, 0)


def _indirect_with_next(pair: Pair) -> None:
    pair.descriptor(0, BASE + DATA, 16, DESC_INDIRECT | DESC_NEXT, 1)


def _indirect_in_chain(pair: Pair) -> None:
    pair.descriptor(0, BASE, 1, DESC_NEXT, 1)
    pair.descriptor(1, BASE + DATA, 16, DESC_INDIRECT, 0)


def _indirect_odd_length(pair: Pair) -> None:
    pair.descriptor(0, BASE + DATA, 17, DESC_INDIRECT, 0)


def _indirect_empty(pair: Pair) -> None:
    pair.descriptor(0, BASE + DATA, 0, DESC_INDIRECT, 0)


def _indirect_huge(pair: Pair) -> None:
    pair.descriptor(0, BASE + DATA, 16 * 1025, DESC_INDIRECT, 0)


def _nested_indirect(pair: Pair) -> None:
    struct.pack_into("<QIHH", pair.memory, DATA, BASE + DATA, 16, DESC_INDIRECT, 0)
    pair.descriptor(0, BASE + DATA, 16, DESC_INDIRECT, 0)


def _indirect_outside(pair: Pair) -> None:
    pair.descriptor(0, BASE + MEMORY, 16, DESC_INDIRECT, 0)


def _indirect_wild_next(pair: Pair) -> None:
    struct.pack_into("<QIHH", pair.memory, DATA, BASE, 1, DESC_NEXT, 1)
    pair.descriptor(0, BASE + DATA, 16, DESC_INDIRECT, 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_outside, "5 bytes at 0x13ffc are outside"),
        (_below, "5 bytes at 0xffff are outside"),
        (_wraps, "8 bytes at 0xfffffffffffffffc are outside"),
        (_too_long, "4294967295 bytes at 0x10000 are outside"),
        (_wild_next, f"descriptor next {SIZE} in a table of {SIZE}"),
        (_loop, "the chain of head 0 has a loop"),
        (_self_loop, "the chain of head 0 has a loop"),
        (_readable_after_writable, "a readable part after a writable one"),
        (_indirect_with_next, "descriptor 0 is INDIRECT and has NEXT"),
        (_indirect_in_chain, "descriptor 1 is INDIRECT inside a chain"),
        (_indirect_odd_length, "an indirect table of 17 bytes"),
        (_indirect_empty, "an indirect table of 0 bytes"),
        (_indirect_huge, "an indirect table of 16400 bytes"),
        (_nested_indirect, "descriptor 0 is INDIRECT inside a chain"),
        (_indirect_outside, "16 bytes at 0x14000 are outside"),
        (_indirect_wild_next, "descriptor next 1 in a table of 1"),
    ],
)
def test_the_device_refuses_wrong_descriptors(spoil: Callable[[Pair], None], message: str) -> None:
    pair = Pair()
    spoil(pair)
    pair.offer(0)
    with pytest.raises(RemoteProtocolError, match=message):
        pair.device.pop()


@pytest.mark.parametrize("last", [PARTS_MAX - 1, PARTS_MAX, 2 * PARTS_MAX - 1])
def test_a_chain_has_at_most_as_many_parts_as_a_table(last: int) -> None:
    size = 2 * PARTS_MAX
    pair = Pair(size, memory=1 << 18)
    for i in range(last):
        pair.descriptor(i, BASE, 1, DESC_NEXT, i + 1)
    pair.descriptor(last, BASE, 1, 0, 0)
    pair.offer(0)
    if last < PARTS_MAX:
        chain = pair.device.pop()
        assert chain is not None
        assert chain.parts == PARTS_MAX
    else:
        with pytest.raises(RemoteProtocolError, match="head 0 has more than 1024 parts"):
            pair.device.pop()


@pytest.mark.parametrize("index", [SIZE + 1, 65535])
def test_the_device_refuses_an_available_index_that_jumps(index: int) -> None:
    pair = Pair()
    pair.poke16(pair.layout.avail + 2, index)
    with pytest.raises(RemoteProtocolError, match=f"avail.idx jumped from 0 to {index}"):
        pair.device.pop()


def test_the_device_refuses_a_wild_head_and_one_in_flight() -> None:
    pair = Pair()
    pair.offer(SIZE)
    with pytest.raises(RemoteProtocolError, match=f"avail head {SIZE} in a queue of {SIZE}"):
        pair.device.pop()
    pair = Pair()
    pair.descriptor(0, BASE, 1, 0, 0)
    pair.poke16(pair.layout.avail + 2, 2)  # two entries, both of head 0
    assert pair.device.pop() is not None
    with pytest.raises(RemoteProtocolError, match="avail head 0 is in flight already"):
        pair.device.pop()


def test_the_devices_own_mistakes_are_local() -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError, match="not in flight"):
        pair.device.push(0, 0)
    pair.driver.add(DATA, 4, writable=True)
    pair.driver.publish()
    chain = pair.device.pop()
    assert chain is not None
    with pytest.raises(LocalProtocolError, match="5 bytes are more"):
        pair.device.push(chain.head, 5)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([(0, 100), (50, 100)], "overlaps"),
        ([(0, 100), (0, 1)], "overlaps"),
        ([(0, 0)], "empty"),
    ],
)
def test_impossible_memory_regions(regions: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        GuestMemory([(start, memoryview(bytearray(size))) for start, size in regions])


def test_a_view_does_not_reach_over_two_regions() -> None:
    memory = GuestMemory([(0, memoryview(bytearray(16))), (16, memoryview(bytearray(16)))])
    assert len(memory.view(16, 16)) == 16
    with pytest.raises(RemoteProtocolError, match="outside"):
        memory.view(8, 16)


@settings(max_examples=examples(100))
@given(st.binary(min_size=400, max_size=400), st.booleans())
def test_random_rings_raise_nothing_but_protocol_errors(noise: bytes, event_idx: bool) -> None:
    for side in ("driver", "device"):
        pair = Pair(event_idx=event_idx)
        for _ in range(4):
            pair.driver.add(DATA, 10, writable=True)
        pair.driver.publish()
        pair.memory[: len(noise)] = noise
        try:
            for _ in range(100):
                if (pair.device.pop() if side == "device" else pair.driver.pop_used()) is None:
                    break
        except RemoteProtocolError:
            pass


# --- random interleavings -----------------------------------------------------------------


class RingMachine(RuleBasedStateMachine):
    """Both sides do what they like; each buffer carries a number, and none may be lost."""

    @initialize(event_idx=st.booleans(), start=st.sampled_from([0, 65530]))
    def begin(self, event_idx: bool, start: int) -> None:
        self.pair = Pair(event_idx=event_idx)
        # Beginning near the wrap by hand is quicker than by 65530 buffers.
        driver, device = self.pair.driver, self.pair.device
        driver._added = driver._published = driver._seen = start
        device._next = device._pushed = device._published = start
        layout = self.pair.layout
        for ring in (layout.avail, layout.used):
            self.pair.poke16(ring + 2, start)
        self.pair.poke16(layout.avail + 4 + 2 * SIZE, start)
        self.pair.poke16(layout.used + 4 + 8 * SIZE, start)
        self.tables = [TABLES + 16 * SIZE * i for i in range(SIZE)]
        self.table_of: dict[int, int] = {}
        self.number = 0
        self.added: list[tuple[int, int]] = []  # (head, number) not published
        self.offered: list[tuple[int, int]] = []  # published, not popped
        self.taken: list[tuple[int, int]] = []
        self.pushed: list[tuple[int, int]] = []  # not published
        self.returned: list[tuple[int, int]] = []
        self.kick_due = self.call_due = False
        self.wants_kicks = self.wants_calls = True
        self.kick_asked = True  # for what is offered next, be there others already

    @precondition(lambda self: self.pair.driver.free > 0)
    @rule(parts=st.integers(1, 3))
    def add(self, parts: int) -> None:
        driver = self.pair.driver
        first, *rest = self.segments(min(parts, driver.free))
        if rest:
            head = driver.add_chain([first, *rest])
        else:
            head = driver.add(first[0], first[1], writable=False)
        self.added.append((head, self.number))

    @precondition(lambda self: self.pair.driver.free > 0)
    @rule(parts=st.integers(1, SIZE))
    def add_indirect(self, parts: int) -> None:
        table = self.tables.pop()
        head = self.pair.driver.add_indirect(table, self.segments(parts))
        self.table_of[head] = table
        self.added.append((head, self.number))

    def segments(self, parts: int) -> list[tuple[int, int, bool]]:
        """Make a buffer that carries the next number."""
        self.number += 1
        place = DATA + 64 * (self.number % 64)
        struct.pack_into("<I", self.pair.memory, place, self.number)
        return [(place, 4, False), *[(DATA, 8, True)] * (parts - 1)]

    @rule()
    def offer(self) -> None:
        kick = self.pair.driver.publish()
        if self.added and self.wants_kicks and (self.kick_asked or not self.offered):
            assert kick, "a device that waits was not kicked"
        assert not (kick and not self.added)
        self.kick_asked = self.kick_asked and not self.added
        self.offered += self.added
        self.added = []

    @rule()
    def take(self) -> None:
        chain = self.pair.device.pop()
        if not self.offered:
            assert chain is None
            return
        assert chain is not None
        head, number = self.offered.pop(0)
        assert chain.head == head
        assert struct.unpack("<I", chain.readable[0]) == (number,)
        self.taken.append((head, number))
        self.kick_asked = self.wants_kicks

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.taken) - 1))
        head, number = self.taken.pop(which)
        self.pair.device.push(head, 0)
        self.pushed.append((head, number))

    @rule()
    def give_back(self) -> None:
        call = self.pair.device.publish()
        if self.pushed and self.wants_calls and not self.returned:
            assert call, "a driver that waits was not called"
        self.returned += self.pushed
        self.pushed = []

    @rule()
    def collect(self) -> None:
        got = self.pair.driver.pop_used()
        if not self.returned:
            assert got is None
            return
        assert got == (self.returned.pop(0)[0], 0)
        if got[0] in self.table_of:
            self.tables.append(self.table_of.pop(got[0]))

    @precondition(lambda self: self.returned)
    @rule(most=st.integers(1, SIZE))
    def collect_and_offer_again(self, most: int) -> None:
        popped = self.pair.driver.pop_many(most)
        assert 0 < len(popped) <= most
        again, self.returned = self.returned[: len(popped)], self.returned[len(popped) :]
        assert popped == [(head, 0) for head, _ in again]
        self.pair.driver.offer_many([head for head, _ in again], 0)
        self.added += again

    @rule(on=st.booleans())
    def want_kicks(self, on: bool) -> None:
        if on:
            assert self.pair.device.request_kicks() == bool(self.offered)
        else:
            self.pair.device.suppress_kicks()
        self.wants_kicks = self.kick_asked = on

    @rule(on=st.booleans())
    def want_calls(self, on: bool) -> None:
        if on:
            assert self.pair.driver.request_calls() == bool(self.returned)
        else:
            self.pair.driver.suppress_calls()
        self.wants_calls = on

    @invariant()
    def counts_agree(self) -> None:
        flying = self.added + self.offered + self.taken + self.pushed + self.returned
        assert self.pair.driver.in_flight == len(flying)
        assert len({head for head, _ in flying}) == len(flying)
        assert self.pair.device.in_flight == len(self.taken)
        assert self.pair.driver.free + len(flying) <= SIZE


RingMachine.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=60)
TestRing = RingMachine.TestCase

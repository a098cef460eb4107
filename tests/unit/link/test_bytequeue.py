"""ByteQueue against a model: a list of bytes and marks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vconfs.link.byte_queue import MARK_COST, ByteQueue


def drain(queue: ByteQueue, size: int) -> bytes:
    return b"".join(queue.take(size))


def peek_and_take(queue: ByteQueue, size: int) -> bytes:
    data = b"".join(queue.peek(size))
    assert b"".join(queue.peek(size)) == data
    queue.take(len(data))
    return data


def test_takes_across_pieces_in_order() -> None:
    queue = ByteQueue()
    queue.put(b"ab")
    queue.put(b"c" * 100_000)
    queue.put(memoryview(b"de"))
    assert queue.size == 100_004
    assert drain(queue, 3) == b"abc"
    assert drain(queue, 200_000) == b"c" * 99_999 + b"de"
    assert queue.size == 0
    assert drain(queue, 10) == b""


def test_never_takes_past_a_mark() -> None:
    queue = ByteQueue()
    queue.put(b"old")
    queue.put_mark()
    queue.put_mark()  # two hang-ups with nothing between are one
    queue.put(b"new")
    assert drain(queue, 100) == b"old"
    assert queue.at_mark
    assert drain(queue, 100) == b""
    queue.take_mark()
    assert drain(queue, 100) == b"new"


def test_pieces_given_out_do_not_change_when_more_comes() -> None:
    queue = ByteQueue()
    queue.put(b"abcdef")
    pieces = queue.take(3)
    queue.put(b"ghi")
    assert b"".join(pieces) == b"abc"
    assert drain(queue, 100) == b"defghi"


def test_pieces_that_are_looked_at_do_not_keep_more_from_coming() -> None:
    queue = ByteQueue()
    queue.put(b"abcdef")
    pieces = queue.peek(3)
    queue.put(b"ghi")
    queue.take(3)
    assert b"".join(pieces) == b"abc"
    assert drain(queue, 100) == b"defghi"


def test_a_flood_of_single_bytes_is_stored_in_few_chunks() -> None:
    queue = ByteQueue()
    for _ in range(200_000):
        queue.put(b"x")
    assert len(queue.take(1 << 20)) < 10


@pytest.mark.parametrize("first", [3, 6, 100])
def test_what_is_put_back_is_taken_next(first: int) -> None:
    queue = ByteQueue()
    queue.put(b"abcdef")
    queue.put_mark()
    taken = drain(queue, first)
    queue.put_back(taken[2:])
    queue.put_back(b"")
    assert queue.size == 4
    assert drain(queue, 100) == b"cdef"
    assert queue.at_mark
    queue.put_back(b"ef")
    assert drain(queue, 100) == b"ef"
    assert queue.at_mark


def test_clear_returns_what_was_dropped() -> None:
    queue = ByteQueue()
    queue.put(b"abc")
    queue.put_mark()
    queue.take(1)
    assert queue.clear() == 2
    assert not queue.at_mark
    assert queue.size == 0


_STEPS = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.integers(40_000, 70_000).map(lambda size: b"z" * size),
        st.just(None),
        st.integers(0, 100_000),
    ),
    max_size=30,
)


@pytest.mark.parametrize("remove", [drain, peek_and_take])
@given(steps=_STEPS)
def test_agrees_with_a_list(
    remove: Callable[[ByteQueue, int], bytes], steps: list[bytes | int | None]
) -> None:
    queue = ByteQueue()
    model: list[bytes | None] = []
    for step in steps:
        if step is None:
            queue.put_mark()
            if not model or model[-1] is not None:
                model.append(None)
        elif isinstance(step, bytes):
            queue.put(step)
            if step:
                if model and model[-1] is not None:
                    model[-1] += step
                else:
                    model.append(step)
        else:
            expected = b""
            if model and (head := model[0]) is not None:
                expected, rest = head[:step], head[step:]
                model[:1] = [rest] if rest else []
            assert remove(queue, step) == expected
        assert queue.size == sum(len(piece) for piece in model if piece is not None)
        assert queue.at_mark == bool(model and model[0] is None)


class Lender:
    """Lends its own memory, and spoils it when it is given back."""

    def __init__(self, data: bytes) -> None:
        self.memory = bytearray(data)
        self.has_it = False
        self.flushes = 0

    def lend(self, queue: ByteQueue) -> None:
        queue.lend(memoryview(self.memory), self)

    def give_back(self) -> None:
        assert not self.has_it
        self.has_it = True
        self.memory[:] = b"!" * len(self.memory)

    def flush(self) -> None:
        assert self.has_it
        self.flushes += 1


def test_a_buffer_of_which_all_was_taken_can_be_given_back() -> None:
    queue, first, second = ByteQueue(), Lender(b"abc"), Lender(b"def")
    first.lend(queue)
    second.lend(queue)
    queue.take(4)
    queue.give_back()
    assert first.has_it
    assert not second.has_it
    assert drain(queue, 10) == b"ef"


def test_a_kept_buffer_is_valid_until_it_is_released() -> None:
    queue, first, second = ByteQueue(), Lender(b"abc"), Lender(b"def")
    first.lend(queue)
    second.lend(queue)
    queue.put(b"ghi")
    assert queue.size == 9
    pieces = queue.take(4)
    queue.put(b"jkl")
    assert b"".join(pieces) == b"abcd"
    queue.give_back()
    assert (first.has_it, second.has_it) == (True, False)
    assert drain(queue, 100) == b"efghijkl"
    queue.give_back()
    queue.give_back()
    assert second.has_it


def test_kept_bytes_are_copied_when_their_device_goes() -> None:
    queue, lenders = ByteQueue(), [Lender(b"abc"), Lender(b"def")]
    for lender in lenders:
        lender.lend(queue)
        queue.put_mark()
    assert drain(queue, 1) == b"a"
    queue.own()
    assert all(lender.has_it for lender in lenders)
    assert [lender.flushes for lender in lenders] == [0, 1]
    assert drain(queue, 100) == b"bc"
    queue.take_mark()
    assert drain(queue, 100) == b"def"


def test_dropped_data_releases_its_buffers() -> None:
    queue, lender = ByteQueue(), Lender(b"abc")
    lender.lend(queue)
    assert queue.clear() == 3
    assert lender.has_it
    assert lender.flushes == 1


def test_a_released_buffer_can_be_used_again_at_once() -> None:
    queue = ByteQueue()
    memory = memoryview(bytearray(4))

    class Again:
        lent = 0

        def give_back(self) -> None:
            """Do nothing before the flush."""

        def flush(self) -> None:
            self.lent += 1
            memory[:] = b"%04d" % self.lent
            queue.lend(memory, self)

    Again().flush()
    for number in range(1, 5):
        assert drain(queue, 100) == b"%04d" % number
        queue.give_back()


def test_what_a_queue_of_hang_ups_holds_is_about_what_it_costs() -> None:
    queue = ByteQueue()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20_000):
            queue.put(b"ab")
            queue.put_mark()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1.5 * queue.cost
    assert queue.size == 40_000


def test_one_mark_is_free() -> None:
    queue = ByteQueue()
    queue.put(b"data")
    queue.put_mark()
    assert queue.cost == 4
    queue.put(b"data")
    queue.put_mark()
    assert queue.cost == 8 + MARK_COST

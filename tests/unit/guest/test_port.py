"""What one port does: each row of "What a file does", on a line that is a list."""

from __future__ import annotations

import errno
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from vconfs.guest.port import MountEnd, Opener, Port, PortOptions
from vconfs.protocol.events import Buffer

IN = select.POLLIN | select.POLLRDNORM
OUT = select.POLLOUT | select.POLLWRNORM
HUP = select.POLLHUP


class FakeLine:
    """Takes up to `room` bytes, and notes what it is asked to tell the host."""

    def __init__(self, *, throttles: bool = True, room: int = 1 << 20) -> None:
        self.throttles = throttles
        self.can_refuse = False
        self.in_flight = 1000
        self.room = room
        self.sent = bytearray()
        self.told: list[tuple[str, int, bool]] = []
        self.attentive = True  # the host sees at once that it is to stop
        self._unseen: list[Callable[[], None]] = []
        self.refills = 0
        self._nudge = trio.lowlevel.ParkingLot()

    def has_room(self, port_id: int) -> bool:
        return self.room > 0

    def want_room(self, port_id: int) -> None: ...

    def send_nowait(self, port_id: int, data: Buffer) -> int:
        if not self.room:
            raise trio.WouldBlock
        taken = bytes(data[: self.room])
        self.sent += taken
        self.room -= len(taken)
        return len(taken)

    def send_later(self, port_id: int, data: Buffer) -> int:
        raise trio.WouldBlock

    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        while wanted():
            try:
                return self.send_nowait(port_id, data)
            except trio.WouldBlock:
                await self._nudge.park()
        return 0

    def give_room(self, room: int) -> None:
        self.room = room
        self._nudge.unpark()

    def nudge(self, port_id: int) -> None:
        self._nudge.unpark()

    def open_port(self, port_id: int, opened: bool) -> None:
        self.told.append(("open", port_id, opened))

    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None:
        self.told.append(("throttle", port_id, on))
        self._unseen.append(seen)
        if self.attentive:
            self.see()

    def see(self) -> None:
        while self._unseen:
            self._unseen.pop(0)()

    def refill(self, port_id: int) -> None:
        self.refills += 1


def make_port(
    line: FakeLine | None = None,
    *,
    connected: bool = True,
    mount_end: MountEnd | None = None,
    **options: object,
) -> tuple[Port, FakeLine]:
    line = line or FakeLine()
    port = Port(3, PortOptions(**options), mount_end=mount_end)  # type: ignore[arg-type]
    port.attach(line)
    port.set_connected(connected)
    return port, line


def taken(pieces: list[Buffer]) -> bytes:
    return b"".join(pieces)


# --- reading ------------------------------------------------------------------------------


def test_read_gathers_over_several_buffers_up_to_the_count() -> None:
    port, _ = make_port()
    port.feed(b"one")
    port.feed(b"two")
    assert taken(port.read_nowait(4)) == b"onet"
    assert taken(port.read_nowait(100)) == b"wo"


def test_read_of_an_empty_connected_port_would_block() -> None:
    port, _ = make_port()
    with pytest.raises(trio.WouldBlock):
        port.read_nowait(1)


def test_read_without_a_host_is_end_of_file() -> None:
    port, _ = make_port(connected=False)
    assert port.read_nowait(1) == []


def test_read_without_a_host_waits_when_asked_to() -> None:
    port, _ = make_port(connected=False, wait=True)
    with pytest.raises(trio.WouldBlock):
        port.read_nowait(1)


async def test_a_waiting_reader_gets_what_comes() -> None:
    port, _ = make_port()
    got: list[bytes] = []

    async def reader() -> None:
        got.append(taken(await port.read(10)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        port.feed(b"hello")
    assert got == [b"hello"]


async def test_readers_are_served_first_come_first_served() -> None:
    port, _ = make_port()
    got: list[tuple[int, bytes]] = []

    async def reader(number: int) -> None:
        got.append((number, taken(await port.read(1))))

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(reader, number)
            await trio.testing.wait_all_tasks_blocked()
        port.feed(b"abcde")
        with pytest.raises(trio.WouldBlock):  # waiting readers come first
            port.read_nowait(1)
    assert got == [(i, b"abcde"[i : i + 1]) for i in range(5)]


async def test_a_cancelled_reader_takes_nothing_and_passes_its_turn() -> None:
    port, _ = make_port()
    got: list[bytes] = []

    async def second() -> None:
        got.append(taken(await port.read(10)))

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                got.append(taken(await port.read(10)))

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        port.feed(b"data")
    assert b"".join(got) == b"data"


async def test_hang_up_while_waiting_is_end_of_file_for_all_readers() -> None:
    port, _ = make_port()
    ends: list[int] = []

    async def reader() -> None:
        ends.append(len(await port.read(10)))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        port.set_connected(False)
    assert ends == [0] * 10


# --- connections are kept apart -----------------------------------------------------------


def test_what_came_before_a_hang_up_is_read_before_end_of_file() -> None:
    port, _ = make_port()
    port.feed(b"last words")
    port.set_connected(False)
    assert taken(port.read_nowait(100)) == b"last words"
    assert port.read_nowait(100) == []


def test_bytes_of_two_connections_are_separated_by_end_of_file() -> None:
    port, _ = make_port()
    port.open(Opener(1))
    port.feed(b"old")
    port.set_connected(False)
    port.set_connected(True)
    port.feed(b"new")
    assert taken(port.read_nowait(100)) == b"old"
    assert port.read_nowait(100) == []
    assert taken(port.read_nowait(100)) == b"new"


def test_a_hang_up_is_seen_even_after_all_was_read() -> None:
    port, _ = make_port()
    port.open(Opener(1))
    port.feed(b"old")
    port.read_nowait(100)
    port.set_connected(False)
    port.set_connected(True)
    port.feed(b"new")
    assert port.read_nowait(100) == []
    assert taken(port.read_nowait(100)) == b"new"


def test_a_hang_up_that_was_seen_is_not_seen_twice() -> None:
    port, _ = make_port()
    port.open(Opener(1))
    port.feed(b"old")
    port.read_nowait(100)
    port.set_connected(False)
    assert port.read_nowait(100) == []
    port.set_connected(True)
    port.feed(b"new")
    assert taken(port.read_nowait(100)) == b"new"


async def test_a_waiting_reader_sees_a_hang_up_though_the_host_is_back_at_once() -> None:
    port, _ = make_port(wait=True)
    port.open(Opener(1))
    ends: list[int] = []

    async def reader() -> None:
        ends.append(len(await port.read(10)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        port.set_connected(False)
        port.set_connected(True)
    assert ends == [0]


def hung_up_and_polled(**options: object) -> tuple[Port, Opener, FakeLine]:
    """A port whose host sent `test` and hung up, which its one opener has seen by polling."""
    port, line = make_port(**options)  # type: ignore[arg-type]
    opener = Opener(1)
    port.open(opener)
    port.feed(b"test")
    port.set_connected(False)
    assert port.answer_poll(opener) & (IN | HUP) == IN | HUP
    assert taken(port.read_nowait(100, opener)) == b"test"
    assert port.answer_poll(opener) & HUP
    return port, opener, line


@asynccontextmanager
async def waiting_reader(port: Port, opener: Opener) -> AsyncIterator[list[bytes]]:
    """Have a reader wait; what it has read comes into the list, at the end at the latest."""
    got: list[bytes] = []

    async def read() -> None:
        got.append(taken(await port.read(10, opener)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        yield got


@pytest.mark.parametrize("wait", [True, False])
def test_a_hang_up_that_a_poll_has_shown_is_over_with_the_next_connection(wait: bool) -> None:
    port, opener, _ = hung_up_and_polled(wait=wait)
    port.set_connected(True)
    assert port.answer_poll(opener) == OUT
    with pytest.raises(trio.WouldBlock):
        port.read_nowait(100, opener)
    port.feed(b"new")
    assert port.answer_poll(opener) == IN | OUT
    assert taken(port.read_nowait(100, opener)) == b"new"
    port.set_connected(False)
    port.set_connected(True)
    assert port.read_nowait(100, opener) == []  # this one it has not seen


@pytest.mark.parametrize("wait", [True, False])
def test_a_hang_up_that_a_poll_has_shown_is_still_end_of_file_until_then(wait: bool) -> None:
    port, opener, _ = hung_up_and_polled(wait=wait)
    assert port.answer_poll(opener) == IN | HUP | OUT
    assert port.read_nowait(100, opener) == []
    port.set_connected(True)
    assert port.answer_poll(opener) == OUT


def test_a_whole_connection_after_a_hang_up_that_a_poll_has_shown() -> None:
    port, opener, _ = hung_up_and_polled()
    port.set_connected(True)
    port.feed(b"new")
    port.set_connected(False)
    assert port.answer_poll(opener) == IN | HUP | OUT
    assert taken(port.read_nowait(100, opener)) == b"new"
    port.set_connected(True)
    assert port.answer_poll(opener) == IN | OUT  # no poll has shown the second one alone
    assert port.read_nowait(100, opener) == []
    assert port.answer_poll(opener) == OUT


def test_a_poll_that_has_data_before_the_hang_up_does_not_show_it() -> None:
    port, _ = make_port()
    opener = Opener(1)
    port.open(opener)
    port.feed(b"old")
    port.set_connected(False)
    assert port.answer_poll(opener) == IN | HUP | OUT
    port.set_connected(True)
    port.feed(b"new")
    assert taken(port.read_nowait(100, opener)) == b"old"
    assert port.answer_poll(opener) == IN | OUT
    assert port.read_nowait(100, opener) == []
    assert taken(port.read_nowait(100, opener)) == b"new"


def test_a_poll_between_two_hang_ups_does_not_show_the_first() -> None:
    port, _ = make_port()
    opener = Opener(1)
    port.open(opener)
    for data in (b"old", b"new"):
        port.set_connected(True)
        port.feed(data)
        port.set_connected(False)
    assert taken(port.read_nowait(100, opener)) == b"old"
    assert port.answer_poll(opener) == IN | HUP | OUT
    assert port.read_nowait(100, opener) == []
    assert taken(port.read_nowait(100, opener)) == b"new"
    assert port.read_nowait(100, opener) == []


def test_a_hang_up_that_one_opener_has_polled_is_still_read_by_another() -> None:
    port, polling, _ = hung_up_and_polled()
    reading = Opener(2)
    port.open(reading)
    port.set_connected(True)
    assert port.answer_poll(polling) == OUT
    assert port.answer_poll(reading) == IN | OUT
    with pytest.raises(trio.WouldBlock):
        port.read_nowait(100, polling)
    assert port.read_nowait(100, reading) == []
    assert port.answer_poll(reading) == OUT


async def test_a_reader_that_polled_sees_the_next_hang_up() -> None:
    port, opener, _ = hung_up_and_polled()
    port.set_connected(True)
    async with waiting_reader(port, opener) as got:
        assert got == []
        port.set_connected(False)
        port.set_connected(True)
    assert got == [b""]


async def test_a_poll_does_not_take_the_end_of_file_of_a_reader_that_waits() -> None:
    port, _ = make_port()
    opener = Opener(1)
    port.open(opener)
    async with waiting_reader(port, opener) as got:
        port.set_connected(False)
        assert port.answer_poll(opener) & HUP
        port.set_connected(True)
    assert got == [b""]


def test_asking_changes_nothing() -> None:
    port, _ = make_port()
    opener = Opener(1)
    port.open(opener)
    port.feed(b"old")
    port.read_nowait(100, opener)
    port.set_connected(False)
    assert port.poll(opener) == IN | HUP | OUT
    port.set_connected(True)
    assert port.read_nowait(100, opener) == []


def test_a_hang_up_is_not_shown_to_a_later_opener_of_a_caching_port() -> None:
    port, first, _ = hung_up_and_polled(cache=True, wait=True)
    port.close(first)
    second = Opener(2)
    port.open(second)
    with pytest.raises(trio.WouldBlock):
        port.read_nowait(100, second)
    port.set_connected(True)
    assert port.answer_poll(second) == OUT


# --- throttling the host ------------------------------------------------------------------


def test_the_host_is_throttled_at_the_limit_and_resumes_below_half() -> None:
    port, line = make_port(limit=100)
    port.open(Opener(1))
    line.told.clear()
    port.feed(b"x" * 99)
    assert line.told == []
    port.feed(b"x")
    assert line.told == [("throttle", 3, True)]
    port.read_nowait(49)
    assert port.guest_throttled
    port.read_nowait(1)
    assert line.told == [("throttle", 3, True), ("throttle", 3, False)]


def test_the_host_goes_on_when_the_buffers_of_a_read_are_free_again() -> None:
    port, line = make_port(limit=100)
    port.open(Opener(1))
    told: list[object] = []

    class Buffer:
        def give_back(self) -> None:
            told.append("free")

        def flush(self) -> None:
            told.append("flush")

    for _ in range(2):
        port.feed(memoryview(b"x" * 50), Buffer())
    assert port.guest_throttled
    pieces = port.take_nowait(100)
    assert taken(pieces) == b"x" * 100
    assert port.guest_throttled
    assert told == []
    line.told = told  # type: ignore[assignment]
    port.give_back()
    assert told == ["free", "free", "flush", ("throttle", 3, False)]


def test_what_comes_while_a_read_looks_again_is_read() -> None:
    port, _ = make_port()

    def look_again() -> bool:
        port.feed(b"came")
        return True

    port.look_again = look_again
    assert taken(port.take_nowait(3)) == b"cam"
    assert taken(port.take_nowait(3)) == b"e"
    port.look_again = lambda: False
    with pytest.raises(trio.WouldBlock):
        port.take_nowait(3)


def test_close_while_throttled_lets_the_host_go_again() -> None:
    """A defect of the v8 patch: it stayed throttled for ever."""
    port, line = make_port(limit=100)
    opener = Opener(1)
    port.open(opener)
    port.feed(b"x" * 100)
    port.read_nowait(1)
    port.close(opener)
    assert not port.guest_throttled
    assert ("throttle", 3, False) in line.told


@pytest.mark.expect_log("ignores THROTTLE")
def test_a_host_that_goes_on_sending_is_reset() -> None:
    port, line = make_port(limit=100)
    port.open(Opener(1))
    for _ in range(20):
        port.feed(b"x" * 100)
        assert port.queued <= port.limit + line.in_flight
    assert not port.host_connected
    assert port.counters.resets == 1
    assert port.counters.dropped == 2000
    assert port.read_nowait(10) == []
    port.set_connected(True)
    port.feed(b"again")
    assert taken(port.read_nowait(10)) == b"again"


def test_a_host_that_has_not_seen_that_it_is_to_stop_may_send() -> None:
    port, line = make_port(limit=100)
    line.attentive = False
    port.open(Opener(1))
    for _ in range(50):
        port.feed(b"x" * 1000)
    line.see()
    port.feed(b"y" * line.in_flight)
    assert port.queued == 50_000 + line.in_flight
    assert port.counters.resets == port.counters.dropped == 0
    port.feed(b"z")
    assert port.counters.resets == 1


def test_earlier_requests_that_the_host_saw_do_not_count() -> None:
    port, line = make_port(limit=100)
    line.attentive = False
    port.open(Opener(1))
    port.feed(b"x" * 100)
    port.read_nowait(100)  # which lets the host go on
    port.feed(b"x" * 100)
    assert line.told[-3:] == [("throttle", 3, on) for on in (True, False, True)]
    first = line._unseen.pop(0)
    first()
    port.feed(b"y" * 5000)
    assert port.counters.resets == 0
    assert port.queued == 5100


def test_a_limit_of_the_hosts_counts_instead_of_ours_and_at_once() -> None:
    port, _ = make_port(limit=1000)
    port.feed(b"x" * 500)
    port.set_limit(400)
    assert port.guest_throttled
    port.set_limit(0)
    assert port.limit == 1000


@pytest.mark.parametrize(
    ("ours", "theirs", "limit"),
    [
        (None, 0, 1 << 20),
        (None, 8 << 20, 8 << 20),
        (None, 65535 << 20, 16 << 20),
        (65536, 0, 65536),
        (65536, 65535 << 20, 65536),
        (64 << 20, 32 << 20, 32 << 20),
        (64 << 20, 65535 << 20, 64 << 20),
    ],
)
def test_our_limit_is_a_ceiling_for_what_a_host_sets(
    ours: int | None, theirs: int, limit: int
) -> None:
    port, _ = make_port(limit=ours)
    port.set_limit(theirs)
    assert port.limit == limit


def test_a_lower_limit_of_the_options_holds_at_once_over_that_of_the_host() -> None:
    port, _ = make_port()
    port.set_limit(16 << 20)
    port.feed(bytes(2 << 20))
    assert not port.guest_throttled
    port.set_options(PortOptions(limit=1 << 20))
    assert port.guest_throttled


def test_hang_ups_count_towards_the_limit() -> None:
    port, _ = make_port(limit=1 << 20)
    cycles = 0
    while not port.guest_throttled:
        port.set_connected(True)
        port.feed(b"x")
        port.set_connected(False)
        cycles += 1
    assert 57 * cycles - (1 << 20) in range(200)  # each is a byte and a mark
    assert port.queued == cycles
    while port.guest_throttled:
        assert taken(port.read_nowait(10)) == b"x"
        assert port.read_nowait(10) == []
        cycles -= 1
    assert (1 << 19) - 57 * cycles in range(-200, 200)


def test_a_mark_that_is_taken_lets_the_host_go_on() -> None:
    port, _ = make_port(limit=80)
    port.open(Opener(1))
    for data in (b"a" * 10, b"b" * 10, b"c" * 10):
        port.set_connected(True)
        port.feed(data)
        port.set_connected(False)
    assert port.guest_throttled  # 30 bytes, and 2 marks that are not free
    assert taken(port.read_nowait(10)) == b"a" * 10
    assert port.read_nowait(10) == []
    assert taken(port.read_nowait(10)) == b"b" * 10
    assert port.guest_throttled
    assert port.read_nowait(10) == []
    assert not port.guest_throttled


@pytest.mark.parametrize(
    "lower", [lambda port: port.set_limit(400), lambda port: port.set_options(PortOptions(limit=4))]
)
def test_data_on_its_way_when_the_limit_was_lowered_is_accepted(
    lower: Callable[[Port], None],
) -> None:
    port, line = make_port(limit=100_000)
    port.open(Opener(1))
    port.feed(b"x" * 50_000)
    lower(port)
    port.feed(b"y" * line.in_flight)
    assert port.host_connected
    assert port.queued == 50_000 + line.in_flight
    port.feed(b"z")
    assert port.counters.resets == 1
    port.set_connected(True)
    for _ in range(20):
        port.feed(b"x" * 100)
        assert port.queued <= port.limit + 100 + line.in_flight


# --- writing ------------------------------------------------------------------------------


def test_write_goes_to_the_host_whether_it_is_connected_or_not() -> None:
    port, line = make_port(connected=False)
    assert port.write_nowait(b"hello") == 5
    assert line.sent == b"hello"
    assert port.counters.bytes_out == 5


def test_write_is_short_when_buffers_run_out_and_blocks_when_none_is_free() -> None:
    port, _ = make_port(FakeLine(room=3))
    assert port.write_nowait(b"hello") == 3
    with pytest.raises(trio.WouldBlock):
        port.write_nowait(b"lo")


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


async def writing(port: Port, outcomes: list[object], data: bytes = b"hello") -> None:
    """Write, and note what came of it and when."""
    outcome: object
    try:
        outcome = await port.write(data)
    except OSError as error:
        outcome = errno.errorcode[error.errno or 0]
    outcomes.append((outcome, round(trio.current_time(), 3)))


def test_write_on_a_throttled_port_is_enospc_and_takes_nothing() -> None:
    port, line = make_port(throttle="enospc")
    port.set_throttled(True)
    assert errno_of(lambda: port.write_nowait(b"x")) == errno.ENOSPC
    assert line.sent == b""


@pytest.mark.parametrize("throttle", ["block", "10s"])
async def test_write_on_a_throttled_port_waits_when_asked_to(throttle: str) -> None:
    port, line = make_port(throttle=throttle)
    port.set_throttled(True)
    with pytest.raises(trio.WouldBlock):
        port.write_nowait(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.write, b"hello")
        await trio.testing.wait_all_tasks_blocked()
        assert line.sent == b""
        port.set_throttled(False)
    assert line.sent == b"hello"


def test_a_write_that_must_not_wait_is_enospc_unless_writes_wait_for_ever() -> None:
    for throttle in ("enospc", "10s"):
        port, _ = make_port(throttle=throttle)
        port.set_throttled(True)
        assert errno_of(lambda: port.write_nowait(b"x", nonblock=True)) == errno.ENOSPC  # noqa: B023
        port.detach()
        assert errno_of(lambda: port.write_nowait(b"x", nonblock=True)) == errno.ENOTCONN  # noqa: B023
    port, _ = make_port(throttle="block")
    changes: list[Callable[[], None]] = [lambda: port.set_throttled(True), port.detach]
    for change in changes:
        change()
        with pytest.raises(trio.WouldBlock):
            port.write_nowait(b"x", nonblock=True)


# --- how long a write waits ---------------------------------------------------------------


async def test_a_write_gives_up_when_the_host_takes_nothing_for_the_time_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    port, line = make_port()
    port.set_throttled(True)
    outcomes: list[object] = []
    await writing(port, outcomes)
    assert outcomes == [("ENOSPC", 10)]
    assert line.sent == b""
    port.set_throttled(False)
    await writing(port, outcomes)
    assert outcomes[1:] == [(5, 10)]


async def test_a_lost_device_is_waited_for_as_long_as_a_throttling_host(
    autojump_clock: trio.testing.MockClock,
) -> None:
    port, line = make_port()
    port.detach()
    outcomes: list[object] = []
    await writing(port, outcomes)
    assert outcomes == [("ENOTCONN", 10)]
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writing, port, outcomes)
        await trio.sleep(9)
        port.detach()  # again: nothing has changed
        await trio.sleep(0.5)
        port.attach(line)
    assert outcomes[1:] == [(5, 20.5)]


async def test_the_time_counts_anew_when_the_host_takes_something(
    autojump_clock: trio.testing.MockClock,
) -> None:
    port, _ = make_port(FakeLine(room=3))
    port.set_throttled(True)
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writing, port, outcomes)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(writing, port, outcomes)
        await trio.sleep(8)
        port.set_throttled(True)  # said twice: the host took nothing
        await trio.sleep(1)
        port.set_throttled(False)  # takes all of the first write that there is room for
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == [(3, 9)]
        await trio.sleep(100)  # for a buffer, not for a throttling host
        port.set_throttled(True)
        await trio.sleep(9)
        port.set_throttled(False)
        port.set_throttled(True)
    assert outcomes == [(3, 9), ("ENOSPC", 128)]


async def test_a_write_that_waited_behind_another_gives_up_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    port, _ = make_port()
    port.set_throttled(True)
    outcomes: list[object] = []
    for _ in range(3):  # as the kernel lets them through
        await writing(port, outcomes)
    assert outcomes == [("ENOSPC", 10)] * 3
    await trio.sleep(1)
    await writing(port, outcomes)
    assert outcomes[3:] == [("ENOSPC", 21)]
    async with trio.open_nursery() as nursery:
        await trio.sleep(1)
        for _ in range(3):  # as they come without the kernel: each has a time of its own
            nursery.start_soon(writing, port, outcomes)
            await trio.sleep(1)
    assert outcomes[4:] == [("ENOSPC", when) for when in (32, 33, 34)]


async def test_a_new_time_limit_holds_for_waiting_writes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    port, _ = make_port(throttle="block")
    port.set_throttled(True)
    outcomes: list[object] = []
    for throttle, end in (("2s", 1002), ("enospc", 2002)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writing, port, outcomes)
            await trio.sleep(1000)
            port.set_options(PortOptions(throttle=throttle))
        assert outcomes.pop() == ("ENOSPC", end)
        port.set_options(PortOptions(throttle="block"))


async def test_a_cancelled_write_ends_at_once_and_passes_its_turn_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    port, line = make_port()
    port.set_throttled(True)
    with trio.move_on_after(1):
        await port.write(b"lost")
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writing, port, outcomes)
        await trio.sleep(9)
        port.set_throttled(False)
    assert outcomes == [(5, 10)]
    assert line.sent == b"hello"


async def test_the_write_limit_never_ends_a_virtio1_write(
    autojump_clock: trio.testing.MockClock,
) -> None:
    port, _ = make_port(FakeLine(throttles=False), connected=False, throttle="1s")
    outcomes: list[object] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writing, port, outcomes)
        await trio.sleep(1000)
        port.set_connected(True)
    assert outcomes == [(5, 1000)]


async def test_a_write_that_waits_for_buffers_notices_a_throttle_and_a_removal() -> None:
    changes: list[tuple[Callable[[Port], None], int]] = [
        (lambda port: port.set_throttled(True), errno.ENOSPC),
        (lambda port: port.remove(), errno.ENODEV),
        (lambda port: port.detach(), errno.ENOTCONN),
    ]
    for change, code in changes:
        port, _ = make_port(FakeLine(room=0), throttle="enospc")
        codes: list[int | None] = []

        async def writer(port: Port = port, codes: list[int | None] = codes) -> None:
            try:
                await port.write(b"x")
            except OSError as error:
                codes.append(error.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer)
            await trio.testing.wait_all_tasks_blocked()
            change(port)
        assert codes == [code]


async def test_a_write_waits_for_buffers() -> None:
    port, line = make_port(FakeLine(room=0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.write, b"hello")
        await trio.testing.wait_all_tasks_blocked()
        line.give_room(10)
    assert line.sent == b"hello"


async def test_a_detached_port_refuses_writes_or_lets_them_wait() -> None:
    port, line = make_port(throttle="enospc")
    port.detach()
    assert errno_of(lambda: port.write_nowait(b"x")) == errno.ENOTCONN
    port, line = make_port(throttle="block")
    port.detach()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.write, b"hello")
        await trio.testing.wait_all_tasks_blocked()
        port.attach(line)
    assert line.sent == b"hello"


async def test_virtio1_writes_wait_for_a_host() -> None:
    port, line = make_port(FakeLine(throttles=False), connected=False)
    with pytest.raises(trio.WouldBlock):
        port.write_nowait(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.write, b"hello")
        await trio.testing.wait_all_tasks_blocked()
        assert line.sent == b""
        port.set_connected(True)
    assert line.sent == b"hello"


# --- poll ---------------------------------------------------------------------------------


def test_poll_masks() -> None:
    port, line = make_port(connected=False)
    assert port.poll() == HUP | OUT
    port.set_connected(True)
    assert port.poll() == OUT
    port.feed(b"x")
    assert port.poll() == IN | OUT
    port.set_throttled(True)
    assert port.poll() == IN
    port.set_throttled(False)
    line.room = 0
    assert port.poll() == IN
    port.remove()
    assert port.poll() == IN | HUP | select.POLLERR
    port.read_nowait(1)
    assert port.poll() == HUP | select.POLLERR


def test_poll_masks_of_virtio1() -> None:
    port, _ = make_port(FakeLine(throttles=False), connected=False)
    assert port.poll() == IN | HUP
    port.set_connected(True)
    assert port.poll() == OUT


def test_every_change_is_reported() -> None:
    changes: list[int] = []
    port = Port(1, on_change=lambda port: changes.append(port.poll()))
    port.attach(FakeLine())
    port.set_connected(True)
    port.feed(b"x")
    port.set_throttled(True)
    port.set_throttled(False)
    port.set_connected(False)
    port.remove()
    assert len(changes) == 7


# --- open, close, removal -----------------------------------------------------------------


def test_only_the_first_open_and_the_last_close_are_announced() -> None:
    """A defect of the v8 patch: the first of two closes told the host "closed"."""
    port, line = make_port()
    first, second = Opener(1), Opener(2)
    port.open(first)
    port.open(second)
    port.feed(b"data")
    port.close(first)
    assert line.told == [("open", 3, True)]
    assert port.queued == 4
    assert taken(port.read_nowait(1)) == b"d"
    port.close(second)
    assert line.told == [("open", 3, True), ("open", 3, False)]
    assert port.queued == 0
    assert port.counters.dropped == 3


USES: dict[str, Callable[[Port, Opener], object]] = {
    "read": lambda port, opener: port.read_nowait(1, opener),
    "write": lambda port, opener: port.write_nowait(b"x"),
    "poll": lambda port, opener: port.answer_poll(opener),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("throttles", [True, False], ids=["v8", "virtio1"])
def test_a_quiet_open_is_announced_at_the_first_use(
    throttles: bool, use: Callable[[Port, Opener], object]
) -> None:
    port, line = make_port(FakeLine(throttles=throttles))
    idle, active = Opener(1), Opener(2)
    port.open(idle, quiet=True)
    port.open(active, quiet=True)
    port.feed(b"data")
    assert line.told == []
    use(port, active)
    use(port, active)
    assert line.told == [("open", 3, True)]
    port.close(active)
    assert port.queued
    port.close(idle)
    assert line.told == [("open", 3, True), ("open", 3, False)]
    assert port.queued == 0
    assert port.counters.dropped


async def test_a_quiet_open_is_announced_before_its_first_use_waits() -> None:
    for use in (lambda port: port.read(1), lambda port: port.write(b"x")):
        port, line = make_port(FakeLine(room=0))
        port.open(Opener(1), quiet=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, port)
            await trio.testing.wait_all_tasks_blocked()
            assert line.told == [("open", 3, True)]
            nursery.cancel_scope.cancel()


def test_an_unused_open_drops_nothing_and_announces_nothing() -> None:
    port, line = make_port(limit=100)
    port.feed(b"x" * 100)
    line.told.clear()
    opener = Opener(1)
    for _ in range(3):
        port.open(opener, quiet=True)
        port.close(opener)
    assert line.told == []
    assert port.guest_throttled
    assert (port.queued, port.counters.dropped) == (100, 0)


def test_an_announced_open_without_a_use_drops_nothing() -> None:
    port, line = make_port()
    port.feed(b"data")
    opener = Opener(1)
    port.open(opener, quiet=True)
    port.tell_open()
    port.tell_open()
    port.close(opener)
    assert line.told == [("open", 3, True), ("open", 3, False)]
    assert port.queued == 4
    port.tell_open()  # too late
    assert len(line.told) == 2


def test_a_use_counts_until_the_last_close_only() -> None:
    port, _ = make_port()
    for _ in range(2):
        opener = Opener(1)
        port.open(opener)
        port.write_nowait(b"x")
        port.close(opener)
    port.feed(b"data")
    port.open(opener, quiet=True)
    port.close(opener)
    assert port.queued == 4


def test_a_device_that_comes_while_a_port_is_open_and_idle_hears_of_it_at_the_first_use() -> None:
    port, _ = make_port()
    port.open(Opener(1), quiet=True)
    port.detach()
    line = FakeLine()
    port.attach(line)
    assert line.told == []
    port.write_nowait(b"x")
    assert line.told == [("open", 3, True)]
    assert line.sent == b"x"


class BusyLine(FakeLine):
    """A device that may refuse to open a port, and does."""

    def __init__(self) -> None:
        super().__init__()
        self.can_refuse = True

    def open_port(self, port_id: int, opened: bool) -> None:
        super().open_port(port_id, opened)
        if opened:
            raise OSError(errno.EBUSY, "busy")


def test_a_device_that_can_refuse_an_open_hears_of_it_at_once() -> None:
    port, line = make_port(BusyLine())
    for _ in range(2):
        with pytest.raises(OSError, match="busy"):
            port.open(Opener(1), quiet=True)
    assert not port.openers
    port.detach()
    port.open(Opener(1), quiet=True)
    with pytest.raises(OSError, match="busy"):
        port.attach(line)
    port.write_nowait(b"x")
    assert line.told == [("open", 3, True)] * 3


def test_a_further_open_or_close_wakes_no_waiter() -> None:
    """Else each of many openers would have all the others polled again."""
    changes: list[Port] = []
    port, _ = make_port()
    port.on_change = changes.append
    openers = [Opener(number) for number in range(3)]
    for opener in openers:
        port.open(opener)
    assert len(changes) == 1
    changes.clear()
    for opener in openers[:2]:
        port.close(opener)
    assert not changes
    port.close(openers[2])
    assert changes


@pytest.mark.parametrize("by_host", [True, False])
def test_a_caching_port_keeps_unread_data_over_a_close(by_host: bool) -> None:
    port, _ = make_port(cache=not by_host)
    port.host_cache = by_host
    opener = Opener(1)
    port.open(opener)
    port.feed(b"data")
    port.close(opener)
    assert taken(port.read_nowait(10)) == b"data"


def test_an_exclusive_port_refuses_a_second_open() -> None:
    port, _ = make_port(exclusive=True)
    port.open(Opener(1))
    with pytest.raises(OSError) as caught:
        port.open(Opener(2))
    assert caught.value.errno == errno.EBUSY


async def test_removal_while_open() -> None:
    port, _ = make_port()
    port.open(Opener(1))
    port.feed(b"rest")
    port.remove()
    assert taken(port.read_nowait(10)) == b"rest"
    for call in (lambda: port.read_nowait(1), lambda: port.write_nowait(b"x")):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENODEV
    with pytest.raises(OSError) as caught:
        port.open(Opener(2))
    assert caught.value.errno == errno.ENXIO


def test_an_attached_port_that_is_open_says_so_again() -> None:
    port, _ = make_port()
    port.open(Opener(1))
    port.detach()
    assert not port.host_connected
    again = FakeLine()
    port.attach(again)
    assert again.told == [("open", 3, True)]


async def test_the_end_of_the_mount_ends_every_wait() -> None:
    mount_end = MountEnd()
    port, _ = make_port(connected=False, mount_end=mount_end, wait=True, throttle="block")
    outcomes: list[object] = []

    async def reader() -> None:
        outcomes.append(await port.read(10))

    async def writer() -> None:
        try:
            await port.write(b"x")
        except OSError as error:
            outcomes.append(error.errno)

    port.set_throttled(True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        nursery.start_soon(writer)
        await trio.testing.wait_all_tasks_blocked()
        mount_end.over = True
        port.detach()
    assert sorted(outcomes, key=str) == [errno.ENOTCONN, []]

"""A port against a model of it: random sequences of everything that can happen."""

from __future__ import annotations

import errno
import itertools
import select

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.examples import examples
from tests.unit.guest.test_port import FakeLine, taken
from vconfs.guest.port import Opener, Port, PortOptions

LIMIT = 200
#: The limit of the options: a host cannot set a higher one.
CEILING = 3 * LIMIT
#: What can come after the request to stop: less than what is in flight, as hang-ups count too.
MUCH = 700


class PortMachine(RuleBasedStateMachine):
    """The model keeps what the host sent as a list of connections, each a string of bytes."""

    @initialize(wait=st.booleans(), cache=st.booleans(), block=st.booleans())
    def begin(self, wait: bool, cache: bool, block: bool) -> None:
        throttle = "block" if block else "enospc"
        self.options = PortOptions(
            wait=wait,
            cache=cache,
            throttle=throttle,
            limit=CEILING,
        )
        self.port = Port(1, self.options)
        self.line: FakeLine | None = None
        self.openers: list[Opener] = []
        self.queued = b""  # what can be read before the next end of file
        self.later = b""  # what comes after it
        self.end_of_file = False  # whether one lies between
        self.seen: set[Opener] = set()  # to whom a poll has shown that end of file
        self.delivered = False
        self.used = False
        self.told = False
        self.opens: list[bool] = []  # what the line was told of opens and closes
        self.connected = False
        self.host_throttled = False
        self.asked_to_stop = False
        self.late = 0  # bytes that came since the host was asked to stop
        self.limit = CEILING
        self.bytes = itertools.cycle(range(256))

    def size(self) -> int:
        return len(self.queued) + len(self.later)

    # --- the host -------------------------------------------------------------------------

    @precondition(lambda self: self.line is None)
    @rule()
    def attach(self) -> None:
        self.line = FakeLine()
        self.port.attach(self.line)
        self.host_throttled = self.asked_to_stop = False
        self.throttle_model()
        self.opens = [True] if self.told else []

    @precondition(lambda self: self.line is not None)
    @rule()
    def detach(self) -> None:
        self.port.detach()
        self.line = None
        self.hang_up_model()
        self.host_throttled = self.asked_to_stop = False

    @precondition(lambda self: self.line is not None)
    @rule()
    def hang_up(self) -> None:
        self.port.set_connected(False)
        self.hang_up_model()

    def hang_up_model(self) -> None:
        if not self.connected:
            return
        self.connected = False
        marked = bool(self.size() or self.delivered)
        if self.end_of_file and self.later:
            # The first of two hang-ups stays; the second is behind what came between. The model
            # has room for one, so what a program sees is checked with one at a time.
            self.read_all()
        if marked:
            self.end_of_file = True
            self.seen.clear()
        self.delivered = False

    @precondition(lambda self: self.line is not None)
    @rule()
    def connect(self) -> None:
        self.port.set_connected(True)
        if not self.connected:
            self.connected = True
            if self.end_of_file and not self.queued and not self.used:
                self.pass_end_of_file()

    @precondition(lambda self: self.line is not None and self.connected)
    @rule(size=st.integers(1, 150))
    def feed(self, size: int) -> None:
        if self.asked_to_stop:
            if self.late + size > MUCH:
                return  # a host that ignores the request to stop is tested by itself
            self.late += size
        data = bytes(itertools.islice(self.bytes, size))
        self.port.feed(data)
        if self.end_of_file:
            self.later += data
        else:
            self.queued += data
        self.throttle_model()

    @rule(limit=st.integers(1, 5))
    def name_a_limit(self, limit: int) -> None:
        self.limit = min(limit * LIMIT, CEILING)
        self.port.set_limit(limit * LIMIT)
        self.throttle_model()
        self.unthrottle_model()

    @precondition(lambda self: self.line is not None)
    @rule(on=st.booleans())
    def throttle(self, on: bool) -> None:
        self.port.set_throttled(on)
        self.host_throttled = on

    # --- programs -------------------------------------------------------------------------

    @rule(quiet=st.booleans())
    def open(self, quiet: bool) -> None:
        opener = Opener(len(self.openers))
        self.port.open(opener, quiet=quiet)
        self.openers.append(opener)
        if not quiet:
            self.tell_model()

    @rule()
    def tell_open(self) -> None:
        self.port.tell_open()
        if self.openers:
            self.tell_model()

    def tell_model(self) -> None:
        if not self.told:
            self.told = True
            self.opens.append(True)

    def use_model(self) -> None:
        self.used = True
        self.tell_model()

    @precondition(lambda self: self.openers)
    @rule(which=st.integers(0, 9))
    def close(self, which: int) -> None:
        opener = self.openers.pop(which % len(self.openers))
        self.port.close(opener)
        self.seen.discard(opener)
        if self.openers:
            return
        if self.told:
            self.opens.append(False)
        if self.used:
            self.delivered = False
            if not self.options.cache:
                self.queued = self.later = b""
                self.end_of_file = False
            elif self.end_of_file and not self.queued:
                self.pass_end_of_file()
        self.used = self.told = False
        self.unthrottle_model()

    @precondition(lambda self: self.openers)
    @rule(size=st.integers(1, 300), which=st.integers(0, 9))
    def read(self, size: int, which: int) -> None:
        opener = self.openers[which % len(self.openers)]
        self.use_model()
        if self.is_over(opener) and self.later:
            self.pass_end_of_file()
        if self.queued:
            expected, self.queued = self.queued[:size], self.queued[size:]
            assert taken(self.port.read_nowait(size, opener)) == expected
            if self.connected and not self.end_of_file:
                self.delivered = True
            self.unthrottle_model()
        elif self.end_of_file and not self.is_over(opener):
            assert self.port.read_nowait(size, opener) == []
            self.pass_end_of_file()
        elif self.connected or self.options.wait:
            try:
                self.port.read_nowait(size, opener)
            except trio.WouldBlock:
                return
            raise AssertionError("an empty port did not block")
        else:
            assert self.port.read_nowait(size, opener) == []

    def read_all(self) -> None:
        if not self.openers:
            self.open(quiet=True)
        while self.queued or self.end_of_file:
            self.read(1000, 0)

    def is_over(self, opener: Opener) -> bool:
        """True if the end of file is next, was shown to this opener, and a connection follows."""
        if self.queued or opener not in self.seen:
            return False
        return self.connected or bool(self.later)

    def pass_end_of_file(self) -> None:
        self.queued, self.later = self.later, b""
        self.end_of_file = self.delivered = False
        self.seen.clear()

    @precondition(lambda self: self.openers)
    @rule(which=st.integers(0, 9))
    def poll(self, which: int) -> None:
        opener = self.openers[which % len(self.openers)]
        self.use_model()
        mask = self.port.answer_poll(opener)
        assert bool(mask & select.POLLIN) == bool(
            self.queued or self.later or (self.end_of_file and not self.is_over(opener))
        )
        if self.end_of_file and not (self.connected or self.size()):
            self.seen.add(opener)

    @precondition(lambda self: self.openers)
    @rule(data=st.binary(min_size=1, max_size=50))
    def write(self, data: bytes) -> None:
        self.use_model()
        blocks = self.options.throttle > 0
        try:
            sent = self.port.write_nowait(data)
        except trio.WouldBlock:
            assert blocks
            assert self.line is None or self.host_throttled
        except OSError as error:
            assert not blocks
            if self.line is None:
                assert error.errno == errno.ENOTCONN
            else:
                assert error.errno == errno.ENOSPC
                assert self.host_throttled
        else:
            assert self.line is not None
            assert not self.host_throttled
            assert sent == len(data)
            assert self.line.sent.endswith(data)

    def throttle_model(self) -> None:
        if self.line is not None and self.size() >= self.limit and not self.asked_to_stop:
            self.asked_to_stop = True
            self.late = 0

    def unthrottle_model(self) -> None:
        if self.line is not None and self.size() <= self.limit // 2:
            self.asked_to_stop = False

    # --- what always holds ----------------------------------------------------------------

    @invariant()
    def status_agrees(self) -> None:
        port = self.port
        assert port.queued == self.size()
        assert port.host_connected == self.connected
        assert port.guest_throttled == self.asked_to_stop
        assert set(port.openers) == set(self.openers)
        if self.line is not None:
            told = [opened for what, _, opened in self.line.told if what == "open"]
            assert told == self.opens
        mask = port.poll()
        assert bool(mask & select.POLLIN) == bool(self.queued or self.end_of_file or self.later)
        assert bool(mask & select.POLLHUP) == (not self.connected)
        assert bool(mask & select.POLLOUT) == (self.line is not None and not self.host_throttled)


PortMachine.TestCase.settings = settings(max_examples=examples(80), stateful_step_count=60)
TestPortModel = PortMachine.TestCase

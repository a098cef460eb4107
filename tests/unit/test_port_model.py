"""A port against a model of it: random sequences of everything that can happen."""

from __future__ import annotations

import errno
import itertools
import select

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vconfs.port import Opener, Port, PortOptions

from .test_port import FakeLine, taken

LIMIT = 200


class PortMachine(RuleBasedStateMachine):
    """The model keeps what the host sent as a list of connections, each a string of bytes."""

    @initialize(wait=st.booleans(), cache=st.booleans(), block=st.booleans())
    def begin(self, wait: bool, cache: bool, block: bool) -> None:
        throttle = "block" if block else "enospc"
        self.options = PortOptions(
            wait=wait,
            cache=cache,
            throttle=throttle,  # type: ignore[arg-type]
            limit=LIMIT,
        )
        self.port = Port(1, self.options)
        self.line: FakeLine | None = None
        self.openers: list[Opener] = []
        self.queued = b""  # what can be read before the next end of file
        self.later = b""  # what comes after it
        self.end_of_file = False  # whether one lies between
        self.delivered = False
        self.connected = False
        self.host_throttled = False
        self.asked_to_stop = False
        self.limit = LIMIT
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
        assert (("open", 1, True) in self.line.told) == bool(self.openers)

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
        self.delivered = False

    @precondition(lambda self: self.line is not None)
    @rule()
    def connect(self) -> None:
        self.port.set_connected(True)
        if not self.connected:
            self.connected = True
            if self.end_of_file and not self.queued and not self.openers:
                self.end_of_file = False

    @precondition(lambda self: self.line is not None and self.connected)
    @rule(size=st.integers(1, 150))
    def feed(self, size: int) -> None:
        if self.size() + size > self.limit + 900:
            return  # overrunning the limit is tested by itself
        data = bytes(itertools.islice(self.bytes, size))
        self.port.feed(data)
        if self.end_of_file:
            self.later += data
        else:
            self.queued += data
        self.throttle_model()

    @rule(limit=st.integers(1, 3))
    def name_a_limit(self, limit: int) -> None:
        self.limit = limit * LIMIT
        self.port.set_limit(self.limit)
        self.throttle_model()
        self.unthrottle_model()

    @precondition(lambda self: self.line is not None)
    @rule(on=st.booleans())
    def throttle(self, on: bool) -> None:
        self.port.set_throttled(on)
        self.host_throttled = on

    # --- programs -------------------------------------------------------------------------

    @rule()
    def open(self) -> None:
        opener = Opener(len(self.openers))
        self.port.open(opener)
        self.openers.append(opener)

    @precondition(lambda self: self.openers)
    @rule()
    def close(self) -> None:
        self.port.close(self.openers.pop())
        if not self.openers and not self.options.cache:
            self.queued = self.later = b""
            self.end_of_file = self.delivered = False
            self.unthrottle_model()

    @precondition(lambda self: self.openers)
    @rule(size=st.integers(1, 300))
    def read(self, size: int) -> None:
        if self.queued:
            expected, self.queued = self.queued[:size], self.queued[size:]
            assert taken(self.port.read_nowait(size)) == expected
            if self.connected and not self.end_of_file:
                self.delivered = True
            self.unthrottle_model()
        elif self.end_of_file:
            assert self.port.read_nowait(size) == []
            self.queued, self.later = self.later, b""
            self.end_of_file = self.delivered = False
        elif self.connected or self.options.wait:
            try:
                self.port.read_nowait(size)
            except trio.WouldBlock:
                return
            raise AssertionError("an empty port did not block")
        else:
            assert self.port.read_nowait(size) == []

    def read_all(self) -> None:
        if not self.openers:
            self.open()
        while self.queued or self.end_of_file:
            self.read(1000)

    @precondition(lambda self: self.openers)
    @rule(data=st.binary(min_size=1, max_size=50))
    def write(self, data: bytes) -> None:
        blocks = self.options.throttle == "block"
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
        if self.line is not None and self.size() >= self.limit:
            self.asked_to_stop = True

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
        assert len(port.openers) == len(self.openers)
        mask = port.poll()
        assert bool(mask & select.POLLIN) == bool(self.queued or self.end_of_file or self.later)
        assert bool(mask & select.POLLHUP) == (not self.connected)
        assert bool(mask & select.POLLOUT) == (self.line is not None and not self.host_throttled)


PortMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestPortModel = PortMachine.TestCase

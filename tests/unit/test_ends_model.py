"""Both ends of one port, at random: no byte is lost but by rule, and that is counted."""

from __future__ import annotations

from contextlib import suppress
from typing import cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from vconfs.guest.port import Opener, PortOptions
from vconfs.host.port import HostPort
from vconfs.testing import Ends, Puppet, open_ends

from .test_ends import spec

HOST_LIMIT, GUEST_LIMIT = 1000, 1500

SIZES = st.integers(1, 3000)
STEPS = st.lists(
    st.one_of(
        *(st.tuples(st.just(what), SIZES) for what in ("write", "read", "send", "receive")),
        st.tuples(st.just("refuse"), SIZES),
        *(
            st.tuples(st.just(what), st.just(0))
            for what in ("open", "open_idle", "tell", "poll", "close")
        ),
        *(
            st.tuples(st.just(what), st.just(0))
            for what in ("connect", "disconnect", "hang_up", "throttle", "unthrottle")
        ),
    ),
    max_size=40,
)


class Run:
    """What each end has sent to the other, and what of it has been taken there."""

    def __init__(self, ends: Ends, puppet: Puppet, *, cache: bool) -> None:
        self.ends = ends
        self.cache = cache
        self.guest = ends.ports[0]
        self.host = cast(HostPort, puppet.port)
        self.openers: list[Opener] = []
        self.told = False
        self.to_host, self.to_guest = bytearray(), bytearray()
        self.at_host, self.at_guest = bytearray(), bytearray()

    def bytes(self, size: int) -> bytes:
        """Bytes that are not the same as those before."""
        start = len(self.to_host) + len(self.to_guest)
        return bytes((start + i) * 7 % 251 for i in range(size))

    # --- the guest's programs -------------------------------------------------------------

    async def open(self, _: int) -> None:
        self.openers.append(Opener(1))
        self.guest.open(self.openers[-1])
        self.told = True

    async def open_idle(self, _: int) -> None:
        self.openers.append(Opener(1))
        self.guest.open(self.openers[-1], quiet=True)

    async def tell(self, _: int) -> None:
        self.guest.tell_open()
        self.told = bool(self.openers)

    async def poll(self, _: int) -> None:
        if self.openers:
            self.guest.answer_poll(self.openers[0])
            self.told = True

    async def close(self, _: int) -> None:
        if self.openers:
            self.guest.close(self.openers.pop())
            self.told = self.told and bool(self.openers)

    async def write(self, size: int) -> None:
        self.told = bool(self.openers)
        data = self.bytes(size)
        with suppress(OSError, trio.WouldBlock):
            self.to_host += data[: self.guest.write_nowait(data)]

    async def read(self, size: int) -> None:
        self.told = bool(self.openers)
        opener = self.openers[0] if self.openers else None
        with suppress(trio.WouldBlock):
            self.at_guest += b"".join(self.guest.read_nowait(size, opener))

    # --- the host -------------------------------------------------------------------------

    async def connect(self, _: int) -> None:
        self.host.connect()

    async def disconnect(self, _: int) -> None:
        self.host.disconnect()

    async def hang_up(self, _: int) -> None:
        self.host.hang_up()

    async def throttle(self, _: int) -> None:
        self.ends.host.throttle(0, True)

    async def unthrottle(self, _: int) -> None:
        self.ends.host.throttle(0, False)

    async def send(self, size: int) -> None:
        if self.host.connected:
            data = self.bytes(size)
            self.to_guest += data[: self.host.send_nowait(data)]

    async def receive(self, size: int) -> None:
        if self.host.queued:
            data = await self.host.receive(size)
            self.host.delivered(len(data))
            self.at_host += data

    async def refuse(self, size: int) -> None:
        """The client goes when it has taken half of what it was to be given."""
        if self.host.queued:
            data = await self.host.receive(size)
            self.at_host += data[: len(data) // 2]
            self.host.put_back(data[len(data) // 2 :])

    # --- what always holds ----------------------------------------------------------------

    def check(self) -> None:
        guest, host = self.guest, self.host
        assert guest.counters.resets == host.counters.resets == 0
        assert guest.counters.ignored == 0
        assert self.ends.manager.ignored == 0
        came, dropped = guest.counters.bytes_in, guest.counters.dropped
        assert came == len(self.at_guest) + guest.queued + dropped
        came, dropped = host.counters.bytes_in, host.counters.dropped
        assert came == len(self.at_host) + host.queued + dropped
        assert host.delivered_bytes == len(self.at_host)
        if self.cache:
            assert self.to_host.startswith(self.at_host)
            assert self.to_guest.startswith(self.at_guest)
            assert guest.counters.dropped == host.counters.dropped == 0

    def check_v8(self) -> None:
        """Where nothing waits on the way, both ends agree of all."""
        guest, host = self.guest, self.host
        assert guest.host_connected == host.connected
        assert host.guest_connected == self.told
        assert guest.host_throttled == host.host_throttled == (host.throttled_by_hand or host._full)
        assert host.guest_throttled == guest.guest_throttled
        assert host.queued < HOST_LIMIT or host.host_throttled
        assert guest.queued < GUEST_LIMIT or guest.guest_throttled
        assert host.counters.bytes_in == len(self.to_host)
        assert guest.counters.bytes_in == len(self.to_guest)

    async def drain(self) -> None:
        """Let both sides take all that there is."""
        self.ends.host.throttle(0, False)
        self.host.connect()
        while self.guest.queued or self.guest.poll() & 1 or self.host.queued:
            await self.read(1 << 20)
            await self.receive(1 << 20)
            await trio.testing.wait_all_tasks_blocked()
            self.check()


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
async def test_no_byte_is_lost_but_by_rule(
    dialect: str, cache: bool, steps: list[tuple[str, int]]
) -> None:
    puppet = Puppet()
    options = PortOptions(cache=cache, limit=GUEST_LIMIT)
    specs = [spec(puppet=puppet, cache=cache, host_limit=HOST_LIMIT)]
    async with open_ends(specs, options, dialect) as ends:
        run = Run(ends, puppet, cache=cache)
        for what, size in steps:
            await getattr(run, what)(size)
            await trio.testing.wait_all_tasks_blocked()
            run.check()
            if dialect == "v8":
                run.check_v8()
        await run.drain()
        if cache:
            assert run.at_host == run.to_host
            assert run.at_guest == run.to_guest

"""Both ends at random: no byte is lost but by rule, and that is counted."""

from __future__ import annotations

import select
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from tests.unit.ends.test_ends import spec
from tests.unit.ends.test_throttle import Pair, late_ends, take_step
from vconfs.guest.port import Opener, PortOptions
from vconfs.host.port import HostPort
from vconfs.testing import Ends, Puppet, open_ends

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
    """The data that each end has sent to the other, and how much the other has taken."""

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
        assert (
            guest.host_throttled
            == host.host_throttled
            == (host.throttled_by_hand or host._inbox._full)
        )
        assert host.guest_throttled == guest.guest_throttled
        assert host.queued < HOST_LIMIT or host.host_throttled
        assert guest.queued < GUEST_LIMIT or guest.guest_throttled
        assert host.counters.bytes_in == len(self.to_host)
        assert guest.counters.bytes_in == len(self.to_guest)

    async def drain(self) -> None:
        """Let both sides take all that there is."""
        self.ends.host.throttle(0, False)
        self.host.connect()
        with trio.fail_after(10):
            while self.guest.queued or self._is_readable() or self.host.queued:
                await self.read(1 << 20)
                await self.receive(1 << 20)
                await trio.testing.wait_all_tasks_blocked()
                self.check()

    def _is_readable(self) -> bool:
        """True if the opener that reads can: a hang-up that it has seen is not shown again."""
        opener = self.openers[0] if self.openers else None
        return bool(self.guest.poll(opener) & select.POLLIN)


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
@settings(max_examples=examples(40))
@given(steps=STEPS)
@example(
    steps=[("send", 1), *((it, 0) for it in ("hang_up", "disconnect", "open", "read", "poll"))]
)
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


# --- both ends look late, far sides fail and recover, and there is an ending in the middle ----

#: What may drop bytes, at which end: the step, or the kind of ending -> a rule of the reference.
RULES = {
    ("guest", "close"): "The last program closes a port that has no `cache`",
    ("guest", "the mount ends"): "The mount ends: data that is queued and not read",
    ("guest", "the device is lost"): "The device is lost, or the mount ends: written data",
    ("host", "leave"): "A host end, port or client ends: data that the far side did not take",
    ("host", "lose"): "The far side goes: data that it had been given and had not read",
    ("host", "kick"): "The guest writes while the chardev is not connected",
    ("host", "the guest is lost"): "The guest writes while the chardev is not connected",
    ("host", "the host ends"): "A host end, port or client ends: data that the far side did not",
}
ENDINGS = ("the mount ends", "the host ends", "the device is lost", "the guest is lost")


class Counted(Pair):
    """Two ports of both ends whose far sides come and go; checks where bytes are dropped."""

    def __init__(self, *ends: Any) -> None:
        super().__init__(*ends)
        self._dropped = self._dropped_by_now()

    def read_some(self, port_id: int, size: int) -> None:
        with suppress(trio.WouldBlock):
            self.read[port_id] += sum(map(len, self.guest[port_id].read_nowait(size)))

    async def receive(self, port_id: int, size: int) -> None:
        if self.puppets[port_id].queued:
            taken = len(await self.puppets[port_id].receive(size))
            self.puppets[port_id].delivered(taken)
            self.received[port_id] += taken

    async def refuse(self, port_id: int, size: int) -> None:
        """Have the far side fail when it has taken half of a piece; it gets the rest again."""
        if self.puppets[port_id].queued:
            data = await self.puppets[port_id].receive(size)
            self.received[port_id] += len(data) // 2
            self.puppets[port_id].put_back(data[len(data) // 2 :])

    async def lose(self, port_id: int, size: int) -> None:
        """Have the far side fail with a piece that it had been given."""
        port = self.puppets[port_id]
        if port.connected and port.queued:
            data = await port.receive(size)
            port.delivered(len(data))
            port.lost(len(data))

    def come(self, port_id: int, _: int) -> None:
        self.puppets[port_id].connect()

    def leave(self, port_id: int, _: int) -> None:
        self.puppets[port_id].disconnect()

    def close(self, port_id: int, _: int) -> None:
        """Have the guest's program close the port and open it again."""
        for opener in list(self.guest[port_id].openers):
            self.guest[port_id].close(opener)
        self.guest[port_id].open(Opener(1))

    async def drain(self, port_id: int, _: int) -> None:  # type: ignore[override]
        """Begin an ending, which accepts nothing more."""
        if self.guest[0].ending:
            return
        await self.driver.begin_ending()
        await self.host.begin_ending(hold=True)

    async def end(self, how: str) -> None:
        match how:
            case "the mount ends":
                await self.driver.take_rest()
                self.driver.stop()
                for port in self.guest:
                    port.give_up()
            case "the host ends":
                self.host.detach()
            case "the device is lost":
                self.driver._link.fail("for this test")  # type: ignore[attr-defined]
            case "the guest is lost":
                assert self.host.guest is not None
                self.host.guest._link.fail("for this test")  # type: ignore[attr-defined]

    def check_rules(self, *causes: str) -> None:
        """Check that only ends dropped bytes that may do so for one of these causes."""
        before, self._dropped = self._dropped, self._dropped_by_now()
        for end in ("guest", "host"):
            if self._dropped[end] > before[end]:
                assert any((end, cause) in RULES for cause in causes), (end, causes)

    def _dropped_by_now(self) -> dict[str, int]:
        return {
            "guest": sum(port.counters.dropped for port in self.guest),
            "host": sum(port.counters.dropped for port in self.puppets),
        }

    def check_sum(self) -> None:
        """Accepted is delivered, still queued, or counted as dropped, by port; after the end."""
        for port_id, (guest, host) in enumerate(zip(self.guest, self.puppets, strict=True)):
            accepted = self.written[port_id] + self.sent[port_id]
            delivered = self.read[port_id] + self.received[port_id]
            dropped = guest.counters.dropped + host.counters.dropped
            assert accepted == delivered + guest.queued + host.queued + dropped


LATE_STEPS = st.lists(
    st.one_of(
        *(
            st.tuples(st.just(what), st.integers(0, 1), SIZES)
            for what in ("write", "send", "read_some", "receive", "refuse", "lose")
        ),
        *(
            st.tuples(st.just(what), st.integers(0, 1), st.just(0))
            for what in ("come", "leave", "close", "kick", "call", "kick", "call", "drain")
        ),
    ),
    min_size=4,
    max_size=60,
)


def test_the_reference_has_these_rules() -> None:
    text = (Path(__file__).parents[3] / "docs/reference/dropped.md").read_text()
    assert all(f"| {rule}" in text for rule in RULES.values())


@settings(max_examples=examples(50))
@given(steps=LATE_STEPS, ending=st.sampled_from(ENDINGS))
@pytest.mark.expect_log("device lost", "guest lost")
async def test_an_ending_in_the_middle_loses_no_byte_but_by_rule(
    steps: list[tuple[str, int, int]], ending: str
) -> None:
    async with late_ends(Counted) as (pair, kicks, calls):
        for what, port_id, size in steps:
            if what in ("refuse", "lose", "drain"):
                await getattr(pair, what)(port_id, size)
            else:
                await take_step(pair, kicks, calls, what, port_id, size)
            pair.check_rules(what)
        await pair.end(ending)
        await trio.testing.wait_all_tasks_blocked()
        pair.check_rules(ending)
    pair.check_rules("the mount ends", "the host ends")
    pair.check_sum()

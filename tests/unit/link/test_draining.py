"""Endings: how long they wait, and that every byte is delivered, owed or dropped."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

import pytest
import trio
import trio.testing

from tests.unit.ends.test_ends import spec
from vconfs.guest.devices import join_embedded
from vconfs.guest.port import Opener, PortOptions
from vconfs.guest.ports import PortManager
from vconfs.host.chardevs import programs
from vconfs.host.host import open_host
from vconfs.host.port import HostPort, HostPortSpec
from vconfs.link.draining import drain, say_what_was_lost
from vconfs.streams._outbox import Outbox, OutgoingFrame
from vconfs.testing import Puppet, open_ends

SIZE = 100_000


def owing(*sizes: int) -> Iterator[dict[str, int]]:
    for size in sizes:
        yield {"port": size}
    while True:
        yield {"port": sizes[-1]}


async def test_nothing_owed_needs_no_wait(autojump_clock: trio.testing.MockClock) -> None:
    begun = trio.current_time()
    assert await drain(lambda: {"port": 0}, 5)
    assert trio.current_time() - begun < 0.1


async def test_progress_is_waited_for_as_long_as_there_is_any(
    autojump_clock: trio.testing.MockClock,
) -> None:
    begun = trio.current_time()
    # One byte less every four seconds, for a hundred seconds.
    assert await drain(lambda: {"port": 25 - int((trio.current_time() - begun) // 4)}, 5)
    assert 100 <= trio.current_time() - begun < 101


@pytest.mark.parametrize("patience", [0, 0.3, 5])
async def test_a_port_without_progress_is_given_up(
    autojump_clock: trio.testing.MockClock, patience: float
) -> None:
    begun = trio.current_time()
    assert not await drain(lambda: {"port": 7}, patience)
    assert patience <= trio.current_time() - begun < patience + 0.1


async def test_a_varying_amount_is_no_progress(
    autojump_clock: trio.testing.MockClock,
) -> None:
    begun = trio.current_time()
    assert not await drain(lambda: {"port": random.randrange(5, 1000)}, 5)
    assert trio.current_time() - begun < 5000


async def test_a_port_that_is_given_up_does_not_end_the_wait_for_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    begun = trio.current_time()

    def owed() -> dict[str, int]:
        return {"stuck": 7, "slow": max(0, 20 - int(trio.current_time() - begun))}

    assert not await drain(owed, 5)
    assert 20 <= trio.current_time() - begun < 21


async def test_bytes_between_two_places_are_not_overlooked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sizes = owing(10, 0, 10, 10, 0)
    assert await drain(lambda: next(sizes), 5)
    assert next(sizes) == {"port": 0}


def test_one_line_names_the_ports_and_the_bytes(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("vconfs.test")
    say_what_was_lost(log, "it has ended", [("vcon0", 0)])
    assert not caplog.records
    say_what_was_lost(log, "it has ended", [("vcon0", 3), ("vcon1", 0), ("vcon2 'x'", 4)])
    assert caplog.messages == [
        "it has ended: 7 bytes were dropped, not delivered: 3 of vcon0, 4 of vcon2 'x'"
    ]


def test_an_outbox_knows_whose_data_has_not_gone_whole() -> None:
    outbox = Outbox()
    outbox.put(OutgoingFrame(b"head", b"x" * 10, 1))
    outbox.put(OutgoingFrame(b"head", b"message", 1, urgent=True))
    outbox.put(OutgoingFrame(b"head", b"y" * 20_000, 2))
    assert outbox.data == {1: 10, 2: 20_000}
    outbox.remove(13)
    assert outbox.data == {1: 10, 2: 20_000}
    outbox.remove(1)
    assert outbox.data == {2: 20_000}
    outbox.remove(outbox.size - 1)
    assert outbox.data == {2: 20_000}
    outbox.remove(1)
    assert not outbox.data


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
async def test_writers_are_refused_and_pollers_are_not_asked_to_write(dialect: str) -> None:
    async with open_ends([spec(b"port", Puppet())], PortOptions(throttle="block"), dialect) as ends:
        port = ends.ports[0]
        ends.host.throttle(0, True)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def writer() -> None:
                with suppress(trio.WouldBlock):
                    while True:
                        port.write_nowait(bytes(1 << 16))
                with pytest.raises(OSError, match="not connected"):
                    await port.write(b"waits")

            await trio.testing.wait_all_tasks_blocked()
            await ends.driver.begin_ending()
        with pytest.raises(OSError, match="not connected"):
            port.write_nowait(b"late")
        assert not port.poll() & 4


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("seed", range(10))
async def test_what_was_accepted_is_delivered_or_dropped_in_the_end(
    dialect: str, cache: bool, seed: int
) -> None:
    """The ends are left in the middle of whatever goes on: nothing may be missing then."""
    pace = random.Random(seed)
    puppet = Puppet()
    specs = [spec(b"port", puppet, cache=cache, host_limit=pace.choice([1000, 1 << 20]))]
    options = PortOptions(throttle="block", limit=pace.choice([1500, 1 << 20]), cache=cache)
    opener = Opener(1)
    written = said = read = 0

    async with open_ends(specs, options, dialect) as ends:
        guest, host = ends.ports[0], cast(HostPort, puppet.port)
        guest.open(opener)

        async def write() -> None:
            nonlocal written
            while True:
                written += await guest.write(bytes(pace.randrange(1, 50_000)))

        async def read_on() -> None:
            nonlocal read
            for _ in range(pace.randrange(20)):
                read += sum(map(len, await guest.read(pace.randrange(1, 5000))))

        async def say() -> None:
            nonlocal said
            for _ in range(100):
                size = pace.randrange(1, 50_000)
                said += size
                await host.send(bytes(size))

        async def hear() -> None:
            for _ in range(pace.randrange(20)):
                await host.receive(pace.randrange(1, 5000))
            if pace.random() < 0.5:
                host.put_back(await host.receive())

        async with trio.open_nursery() as nursery:
            for task in (write, read_on, say, hear):
                nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        if pace.random() < 0.5:
            await ends.manager.shut()
    guest.give_up()
    assert written + said == host.delivered_bytes + read + sum(
        side.counters.dropped for side in (guest, host)
    )


@pytest.mark.parametrize("dialect", ["v8", "virtio1"])
async def test_what_the_host_has_not_taken_when_it_is_lost_is_counted(
    dialect: str, caplog: pytest.LogCaptureFixture
) -> None:
    puppet = Puppet()
    async with open_ends([spec(b"port", puppet, host_limit=1000)], dialect=dialect) as ends:
        guest, host = ends.ports[0], cast(HostPort, puppet.port)
        written = 0
        with suppress(trio.WouldBlock, OSError):
            while True:
                written += guest.write_nowait(bytes(1 << 16))
        assert written >= 1 << 16
        ends.driver.lost("for this test")
    assert host.delivered_bytes == 0
    assert written == guest.counters.dropped + host.counters.dropped


async def test_a_hang_up_is_over_as_soon_as_the_client_is_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    port = HostPort(0, HostPortSpec(b"port", Puppet()))
    clients = [lambda: None, lambda: None]
    port.hang_up_client = clients[0]
    woken: list[float] = []

    async def wait() -> None:
        await port.wait_hung_up(clients[0])
        woken.append(trio.current_time())

    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        port.hang_up_client = clients[0]  # the same client is still there
        await trio.testing.wait_all_tasks_blocked()
        assert not woken
        port.hang_up_client = clients[1]
    assert woken == [before]


async def test_the_line_of_a_hang_up_counts_all_that_a_stubborn_program_has_not_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(programs, "_PATIENCE", 0.3)
    command = programs.Exec.parse("trap '' TERM; while :; do sleep 0.05; done")
    manager = PortManager()
    async with (
        open_host([HostPortSpec(b"port", command)], patience=0.1) as host,
        join_embedded(host, manager),
    ):
        guest = manager.ports[0]
        guest.open(Opener(1))
        assert guest.write_nowait(bytes(SIZE)) == SIZE
        with trio.fail_after(10):
            while host.ports[0].hang_up_client is None or not host.ports[0].settle():
                await trio.sleep(0.01)
            await host.disconnect_when_drained(0)
    lines = [line for line in caplog.messages if "not delivered" in line]
    assert lines == [
        f"hung up a client: {SIZE} bytes were dropped, not delivered: {SIZE} of port 'port'"
    ]

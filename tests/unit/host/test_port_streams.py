"""A port of the host end as trio streams for the program that it is embedded in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from attrs import define

from vconfs.guest.port import Opener, Port, PortOptions
from vconfs.host import HostPortSpec, PortListener, PortStream
from vconfs.system.tasks import open_background
from vconfs.testing import Ends, open_ends


@define(eq=False)
class GuestStream(trio.abc.HalfCloseableStream):
    """An open file of the guest end, as a stream: what a program in the guest would do with it."""

    port: Port
    opener: Opener
    closed: bool = False

    @classmethod
    def open(cls, port: Port) -> GuestStream:
        opener = Opener(1)
        port.open(opener)
        return cls(port, opener)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[await self.port.write(rest) :]

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"".join(map(bytes, await self.port.read(max_bytes or 1 << 16)))

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            self.port.close(self.opener)
        await trio.lowlevel.checkpoint()


@define
class Joined:
    ends: Ends
    listener: PortListener

    @property
    def port(self) -> Port:
        return self.ends.ports[0]

    @property
    def dropped(self) -> int:
        return self.ends.host.ports[0].counters.dropped

    def open(self) -> GuestStream:
        return GuestStream.open(self.port)

    async def pair(self) -> tuple[GuestStream, PortStream]:
        """Open the port and accept; a hang-up is an end of file only after some data."""
        guest = self.open()
        stream = await self.listener.accept()
        await stream.send_all(b"welcome")
        assert await guest.receive_some() == b"welcome"
        return guest, stream


@pytest.fixture(params=["v8", "virtio1"])
async def joined(request: pytest.FixtureRequest) -> AsyncIterator[Joined]:
    listener = PortListener()
    spec = HostPortSpec(b"port", listener, host_limit=10_000)
    options = PortOptions(limit=10_000, throttle="block")
    with trio.fail_after(20):
        async with open_ends([spec], options, request.param) as ends:
            yield Joined(ends, listener)


async def test_bytes_go_both_ways_until_the_guest_closes(joined: Joined) -> None:
    assert joined.port.host_connected
    guest, stream = await joined.pair()
    await guest.send_all(b"to the host")
    assert await stream.receive_some(6) == b"to the"
    assert await stream.receive_some() == b" host"
    await stream.send_all(b"to the guest")
    assert await guest.receive_some() == b"to the guest"
    await guest.send_all(b"last")
    await guest.aclose()
    assert [data async for data in stream] == [b"last"]
    assert await stream.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"nobody hears")
    assert joined.port.host_connected


async def test_each_open_has_its_own_stream_and_bytes_never_mix(joined: Joined) -> None:
    for number in range(3):
        async with joined.open() as guest:
            await guest.send_all(b"%d" % number)
    for number in range(3):
        async with await joined.listener.accept() as stream:
            assert [data async for data in stream] == [b"%d" % number]


async def test_serve_listeners_serves_a_port(joined: Joined) -> None:
    async def shout(stream: PortStream) -> None:
        async for data in stream:
            await stream.send_all(data.upper())

    async with open_background() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, [joined.listener])
        for _ in range(3):
            async with joined.open() as guest:
                await guest.send_all(b"hello")
                assert await guest.receive_some() == b"HELLO"


async def test_send_eof_is_an_end_of_file_for_the_guest_which_can_still_send(
    joined: Joined,
) -> None:
    guest, stream = await joined.pair()
    await stream.send_all(b"all")
    await stream.send_eof()
    assert await guest.receive_some() == b"all"
    assert await guest.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"more")
    await guest.send_all(b"answer")
    assert await stream.receive_some() == b"answer"
    await stream.send_eof()  # says nothing more
    await stream.aclose()
    await guest.aclose()


async def test_a_closed_stream_is_an_end_of_file_and_hears_no_more(joined: Joined) -> None:
    guest, stream = await joined.pair()
    await guest.send_all(b"unread")
    await stream.aclose()
    await stream.aclose()
    assert await guest.receive_some() == b""
    await guest.send_all(b"unheard")
    await guest.aclose()
    for call in (stream.receive_some, stream.send_eof, lambda: stream.send_all(b"x")):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    guest, stream = await joined.pair()
    assert joined.dropped == len(b"unreadunheard")
    await guest.send_all(b"new")
    assert await stream.receive_some() == b"new"


@pytest.mark.parametrize("guest_sends", [True, False])
async def test_what_one_side_does_not_receive_makes_the_other_one_wait(
    joined: Joined, guest_sends: bool
) -> None:
    guest, stream = await joined.pair()
    sender, receiver = (guest, stream) if guest_sends else (stream, guest)
    sent = trio.Event()

    async def send() -> None:
        await sender.send_all(bytes(10_000_000))
        sent.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert not sent.is_set()
        received = 0
        while received < 10_000_000:
            received += len(await receiver.receive_some())
        await sent.wait()


async def bring_about(end: str, joined: Joined, guest: GuestStream, stream: PortStream) -> None:
    """End a conversation in one of the ways that there are."""
    match end:
        case "reopen":
            await guest.aclose()
            joined.open()
        case "read":
            await guest.aclose()
            assert await stream.receive_some() == b""
        case "aclose":
            await stream.aclose()
        case "disconnect":
            joined.ends.host.disconnect(0)
        case "remove":
            joined.ends.host.remove(0)
        case "detach":
            joined.ends.driver.stop()
            joined.ends.host.detach()


@pytest.mark.parametrize("end", ["reopen", "read", "aclose", "disconnect", "remove"])
async def test_a_waiting_send_ends_with_the_port(joined: Joined, end: str) -> None:
    guest, stream = await joined.pair()
    error = trio.ClosedResourceError if end == "aclose" else trio.BrokenResourceError

    async def send() -> None:
        with pytest.raises(error):
            await stream.send_all(bytes(100_000_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await bring_about(end, joined, guest, stream)


@pytest.mark.parametrize("end", ["aclose", "disconnect", "remove", "detach"])
async def test_a_waiting_receive_ends_with_the_port(joined: Joined, end: str) -> None:
    guest, stream = await joined.pair()

    async def receive() -> None:
        if end == "aclose":
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
        else:
            assert await stream.receive_some() == b""

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await bring_about(end, joined, guest, stream)


async def test_a_guest_that_was_disconnected_opens_the_port_again(joined: Joined) -> None:
    guest, stream = await joined.pair()
    joined.ends.host.disconnect(0)
    assert await guest.receive_some() == b""
    assert await stream.receive_some() == b""
    await guest.aclose()
    guest, stream = await joined.pair()
    await guest.send_all(b"again")
    assert await stream.receive_some() == b"again"


async def test_a_listener_that_is_closed_lets_the_present_stream_end(joined: Joined) -> None:
    guest, stream = await joined.pair()
    await joined.listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await joined.listener.accept()
    await guest.send_all(b"still here")
    assert await stream.receive_some() == b"still here"
    await guest.aclose()
    assert await stream.receive_some() == b""
    await joined.ends.host.ports[0].ended.wait()
    assert not joined.port.host_connected


@pytest.mark.parametrize("how", ["aclose", "remove"])
async def test_a_waiting_accept_ends_with_the_port(joined: Joined, how: str) -> None:
    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await joined.listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        if how == "remove":
            joined.ends.host.remove(0)
        else:
            await joined.listener.aclose()
    port = joined.port if how == "aclose" else None
    assert port is None or not port.host_connected


async def test_a_flood_of_opens_that_are_not_accepted_costs_no_memory(joined: Joined) -> None:
    host_port = joined.ends.host.ports[0]
    for _ in range(20_000):
        async with joined.open():
            pass
    assert host_port._inbox.queue.marks < 1100
    async with joined.open() as guest:
        await guest.send_all(b"the last")
    received: list[bytes | bytearray] = []
    while b"the last" not in received:
        async with await joined.listener.accept() as stream:
            received = [data async for data in stream]
    guest, stream = await joined.pair()
    await guest.send_all(b"and on")
    assert await stream.receive_some() == b"and on"


class Relay:
    """Two ports whose guest copies between them: a stream at either end of that."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery

    async def pair(self) -> tuple[PortStream, PortStream]:
        ends: tuple[PortStream, PortStream] = await self.nursery.start(self._run)
        return ends

    async def _run(self, task_status: trio.TaskStatus[tuple[PortStream, PortStream]]) -> None:
        listeners = [PortListener(), PortListener()]
        specs = [HostPortSpec(b"", listener, host_limit=10_000) for listener in listeners]
        async with open_ends(specs, PortOptions(limit=10_000, throttle="block")) as ends:
            one, other = (GuestStream.open(port) for port in ends.ports.values())
            near, far = [await listener.accept() for listener in listeners]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, one, other)
                nursery.start_soon(self._copy, other, one)
                await trio.testing.wait_all_tasks_blocked()  # both read
                task_status.started((near, far))

    async def _copy(self, source: GuestStream, target: GuestStream) -> None:
        async for data in source:
            await target.send_all(data)
        await target.aclose()
        await source.aclose()


async def test_a_stream_does_what_trio_asks_of_any() -> None:
    async with open_background() as nursery:
        with trio.fail_after(20):
            await trio.testing.check_two_way_stream(Relay(nursery).pair, None)

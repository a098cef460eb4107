"""The link over a byte stream, the same for both ends.

Frames that the stream does not take at once wait in an `Outbox`, where control messages go before
the data of other ports. Data is accepted while less than `_WAITING_MAX` waits and the peer's window
has space, a whole write request at a time. Control messages may use `_RESERVE` more, so that data
that was accepted already does not hold them back.

The stream is read at all times, even if a reader is slow: throttling is done per port.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Final, TypeAlias

import trio
from attrs import evolve, frozen

from vconfs.errors import VconfsError
from vconfs.link.busy_polling import PATIENCE
from vconfs.link.byte_queue import Lent
from vconfs.link.draining import drain
from vconfs.link.link import Link, call_soon, leave_soon
from vconfs.overrides import override
from vconfs.protocol import v8
from vconfs.protocol.errors import RemoteProtocolError
from vconfs.protocol.events import Buffer
from vconfs.protocol.stream import (
    HEADER,
    INPUT,
    NAMES,
    OUTPUT,
    RESERVE,
    UNLIMITED,
    Closed,
    ConfigChanged,
    Connection,
    CreditReceived,
    Event,
    Frame,
    GuestNamed,
    Hello,
    Role,
)
from vconfs.streams._outbox import Outbox, OutgoingFrame
from vconfs.streams.stream_address import StreamAddress
from vconfs.streams.wire import Wire
from vconfs.system.tasks import open_background

#: Seconds that a peer has to send its hello.
HELLO_LIMIT: Final = 10.0
#: Data is accepted while fewer bytes than this wait for the stream.
_WAITING_MAX: Final = 1 << 18
#: Control messages may use this many bytes more, here and of the peer's window.
_RESERVE: Final = 1 << 16
#: Seconds for the rest of a broken stream, or of one without an end, to come.
_GRACE: Final = 0.5
#: Seconds between two turns of an owner that has not taken everything up to the stream's end.
_PAUSE: Final = 0.01


#: Makes a context for the peer that has said hello, with its name if it said one. To enter it
#: raises VconfsError if the peer is refused.
Turn: TypeAlias = Callable[[str | None], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def open_link(
    wire: Wire,
    address: StreamAddress,
    role: Role,
    features: int,
    config: bytes = b"",
    *,
    name: str = "",
    turn: Turn | None = None,
) -> AsyncIterator[StreamLink]:
    """Exchange hellos on `wire`, and carry frames while the block runs.

    `name` is that of our guest end. A host end asks for it if `features` has NAMES, and then has to
    send the config space first. The context of `turn` is entered after the hellos and left at the
    end; the peer is told why it is refused. The block has to set the link's owner before it awaits
    anything. Raise VconfsError if the peer sends no hello or a wrong one, or is refused.
    """
    connection = Connection(role, window=address.window, noise_max=address.noise_max)
    features |= NAMES if name else 0
    hello, peer_name = await _shake_hands(wire, connection, features, config, name)
    async with AsyncExitStack() as stack:
        if turn is not None:
            try:
                await stack.enter_async_context(turn(peer_name))
            except VconfsError as refusal:
                await _refuse(wire, connection, str(refusal))
                raise
        link = StreamLink(wire, connection, hello, address.window)
        try:
            async with open_background() as nursery:
                nursery.start_soon(link.run)
                try:
                    yield link
                finally:
                    try:
                        await leave_soon(link)
                    finally:
                        link.stop()
        finally:
            await link.end()
            link.owner.left()


async def _shake_hands(
    wire: Wire, connection: Connection, features: int, config: bytes, name: str
) -> tuple[Hello, str | None]:
    """Exchange hellos, and the guest's name if both ends want that; return the peer's."""
    try:
        with trio.fail_after(HELLO_LIMIT):
            await _say(wire, connection.hello(features, config))
            hello = await _hear(wire, connection)
            assert isinstance(hello, Hello)
            await _say(wire, connection.answer())
            if not connection.features & NAMES:
                return hello, None
            if connection.role is Role.GUEST:
                await _say(wire, connection.name(name))
                return await _hear_welcome(wire, connection, hello), None
            while not isinstance(event := await _hear(wire, connection), GuestNamed):
                pass  # credit
            connection.acknowledge(event.size)
            return hello, event.name
    except trio.TooSlowError:
        raise VconfsError(f"the peer said no hello within {HELLO_LIMIT:.0f} seconds") from None
    except OSError as error:
        raise VconfsError(f"the stream broke: {error.strerror}") from None
    except RemoteProtocolError as error:
        raise VconfsError(str(error)) from None


async def _hear(wire: Wire, connection: Connection) -> Event:
    """Return the peer's next event; raise VconfsError if it leaves."""
    while (event := connection.next_event()) is None:
        if data := await wire.receive():
            wire.heard_at = trio.current_time()
            connection.feed(data)
        else:
            connection.feed_eof()
    if isinstance(event, Closed):
        raise VconfsError(event.reason)
    return event


async def _hear_welcome(wire: Wire, connection: Connection, hello: Hello) -> Hello:
    """Wait until the host end has taken us as its guest; return its hello with our config space."""
    while not isinstance(event := await _hear(wire, connection), ConfigChanged):
        if isinstance(event, Frame):
            raise VconfsError("the host end sent data before our config space")
    connection.acknowledge(len(event.config))
    return evolve(hello, config=event.config)


async def _refuse(wire: Wire, connection: Connection, reason: str) -> None:
    """Say to a peer that has said hello why it is not served."""
    with trio.move_on_after(_GRACE), suppress(OSError):
        await _say(wire, connection.bye(reason))
        while wire.unread():  # noqa: ASYNC110
            await trio.sleep(_PAUSE)
    await wire.end()


class _Ours:
    """Received bytes that are kept: they are our own, and nothing has to be returned."""

    def give_back(self) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


_OURS: Final = _Ours()


async def _say(wire: Wire, words: bytes) -> None:
    while words := words[wire.send_nowait([words]) :]:
        await wire.writable()


@frozen
class _Came:
    """A frame that is not acknowledged yet: its payload's size, and True if it is watched."""

    size: int
    watched: bool


class StreamLink(Link):
    """A link over a stream whose ends have exchanged hellos; `run` carries its bytes.

    `window` is the size of the window that we granted to the peer. Data leaves at least `RESERVE`
    bytes of the peer's window free, so that a request to stop can always be sent. Otherwise two
    ends that withhold credit from each other would wait for ever.
    """

    def __init__(self, wire: Wire, connection: Connection, hello: Hello, window: int) -> None:
        self.features: int = connection.features & ~NAMES
        self.in_flight = window
        if connection.role is Role.HOST:
            # Not on a guest end: programs wait for it meanwhile, whose requests it has to serve.
            wire.patience = PATIENCE
        self._wire = wire
        self._connection = connection
        self._config = hello.config
        self._config_due: bytes | None = None
        self._receives = INPUT if connection.role is Role.GUEST else OUTPUT
        self._held: deque[_Came] = deque()  # what the owner is handling
        self._withheld: list[_Came] = []  # what is acknowledged at `release`
        self._awaited: deque[Callable[[], None]] = deque()  # a callback for each watched frame
        half = hello.window // 2 - HEADER.size
        self._payload = connection.max_payload
        self._reserve = _RESERVE
        if hello.window:
            self._payload = min(self._payload, half - RESERVE)
            self._reserve = min(_RESERVE, half - self._payload)
        self._fresh: list[OutgoingFrame] = []  # sent since the last flush
        self._outbox = Outbox(wire.unread)
        self._sent = trio.Event()  # set when frames wait, or the owner waits for room
        self._room_wanted = False
        self._broken = ""  # why nothing can be written any more
        self._dead = False
        self._leaving = False
        self._at_end = False  # True if the peer has ended the stream
        self._reads = 0  # how often something came
        self._lost = 0  # bytes that the stream had taken, and that do not arrive
        self._running = trio.CancelScope(shield=True)

    @override
    @property
    def config(self) -> bytes:
        return self._config

    # --- sending --------------------------------------------------------------------------

    @override
    def room_for(self, queue: int, header_size: int) -> int:
        return self._payload - header_size if self._has_room(0, self._reserve) else 0

    @override
    def find_room(self, queue: int, header_size: int) -> int:
        room = self.room_for(queue, header_size)
        self._room_wanted = self._room_wanted or not room
        return room

    @override
    def find_buffer(self, queue: int, wanted: int) -> int:
        if self._has_room(_RESERVE, 0, wanted):
            return self._payload
        self._room_wanted = True
        return 0

    @override
    def want_room(self, queue: int) -> None:
        self._room_wanted = True

    @override
    def send(
        self,
        queue: int,
        header: bytes,
        data: Buffer,
        seen: Callable[[], None] | None = None,
        *,
        port_id: int | None = None,
    ) -> int:
        data = memoryview(data)[: self._payload - len(header)]
        taken = len(data)
        head = self._connection.frame_header(queue, len(header) + taken, watched=seen is not None)
        if seen is not None:
            self._awaited.append(seen)
        port, urgent = v8.addressee(header) if port_id is None else (port_id, False)
        self._fresh.append(OutgoingFrame(head + header, data, port, urgent=urgent))
        return taken

    @override
    def untaken(self) -> Mapping[int, int]:
        """Return the bytes of the outbox, and those in the stream once its end has lost them."""
        return self._outbox.untaken(self._lost)

    @override
    def owed(self) -> Mapping[int, int]:
        """Return the bytes of the outbox, and those in the stream as far as the kernel knows."""
        return self._outbox.owed(self._wire.unread())

    def send_config(self, config: bytes) -> None:
        """Send the config space to the guest, as soon as there is room for it (host end)."""
        self._config_due = config
        self._send_config()

    @override
    def flush(self, queue: int) -> None:
        self._send_credit()
        fresh, self._fresh = self._fresh, []
        if not fresh or self._dead:
            return
        sent = 0 if self._outbox.size else self._write([p for f in fresh for p in (f.head, f.data)])
        for frame in fresh:
            size = frame.size
            if sent < size:
                self._outbox.put(frame, sent)
                sent = 0
            else:
                self._outbox.passed(frame)
                sent -= size
        if self._outbox.size or self._room_wanted:
            self._sent.set()

    # --- receiving ------------------------------------------------------------------------

    @override
    def receive(self, queue: int) -> memoryview | None:
        if queue != self._receives:
            return None
        try:
            while not self._dead and (event := self._connection.next_event()) is not None:
                if isinstance(event, Frame):
                    self._held.append(_Came(len(event.payload), event.watched))
                    return event.payload
                if self._take_in(event):
                    self.again(queue)  # the owner first handles the change
                    return None
        except RemoteProtocolError as error:
            self._say_bye(str(error))
            self._lose(str(error))
        return None

    def _take_in(self, event: Event) -> bool:
        """Handle an event that is not a frame. Return True if the owner has to act on it."""
        match event:
            case ConfigChanged():
                self._config = event.config
                self._connection.acknowledge(len(event.config))
                self.owner.config_changed()
                return True
            case CreditReceived():
                for _ in range(event.seen):
                    self._awaited.popleft()()
                self._tell_room()
            case Closed():
                self._lose(event.reason)
            case _:
                raise AssertionError(f"a stream gave {event} behind the hellos")
        return False

    @override
    def hold(self, queue: int) -> Lent | None:
        """Keep nothing: received bytes are our own, and stay valid while referenced."""
        return _OURS

    @override
    def again(self, queue: int) -> None:
        call_soon(self.owner.received, queue)

    @override
    def done(self, queue: int) -> None:
        self._acknowledge(self._held.popleft())

    @override
    def withhold(self, queue: int) -> None:
        self._withheld.append(self._held.popleft())

    @override
    def release(self, queue: int) -> None:
        withheld, self._withheld = self._withheld, []
        for frame in withheld:
            self._acknowledge(frame)
        self.flush(queue)

    # --- the stream -----------------------------------------------------------------------

    async def run(self) -> None:
        """Carry the bytes until the link is lost, or `stop` is called. Only that cancels it."""
        with self._running:
            async with open_background() as nursery:
                nursery.start_soon(self._write_on)
                await self._read_on()

    def stop(self) -> None:
        """Stop carrying bytes."""
        self._running.cancel()

    async def _read_on(self) -> None:
        try:
            while not self._dead:
                if data := await self._wire.receive():
                    self._reads += 1
                    self._connection.feed(data)
                    if self._connection.awaits_more:
                        continue
                else:
                    self._at_end = True
                    self._connection.feed_eof()
                self.owner.received(self._receives)
                while self._at_end and not self._dead:  # the owner takes it in several turns
                    await trio.sleep(_PAUSE)
                    self.owner.received(self._receives)
        except OSError as error:
            self._lose(f"the stream broke: {error.strerror}")

    @override
    async def leave(self, patience: float) -> None:
        """Send BYE, and wait until the peer ends the stream."""
        if self._leaving or self._dead:
            return
        self._leaving = True
        self._say_bye(f"the {self._connection.role.name.lower()} end leaves")
        if await drain(self._still_to_go, patience) and not self._broken:
            await self._wire.end_output()
            await drain(self._still_to_end, patience if self._wire.has_end else _GRACE)

    def _still_to_go(self) -> Mapping[str, int]:
        waiting = self._outbox.size
        if self._broken or (self._wire.outlives_us and not waiting):
            return {"bytes": 0}
        return {"bytes": waiting + self._wire.unread()}

    def _still_to_end(self) -> Mapping[str, int]:
        """Return a number that becomes less when the peer reads or sends, and 0 at its end."""
        if (self._dead or self._at_end) and not self._wire.is_busy:
            return {"bytes": 0}
        return {"bytes": UNLIMITED + self._wire.unread() - self._reads}

    async def end(self) -> None:
        """End the stream, and note what is lost by that. Call this after `run` has ended."""
        self._dead = True
        self._lost = await self._wire.end()

    def _has_room(self, more_waiting: int, reserve: int, wanted: int | None = None) -> bool:
        """True if `wanted` bytes, or by default the largest payload, can be sent."""
        payload = self._payload if wanted is None else min(wanted, self._payload)
        return (
            not self._dead
            and self._outbox.size < _WAITING_MAX + more_waiting
            and self._connection.free - HEADER.size - reserve >= payload
        )

    def _tell_room(self) -> None:
        if self._config_due is not None:
            self._send_config()
        if self._room_wanted and not self._dead and self._outbox.size <= _WAITING_MAX // 2:
            self._room_wanted = False
            self.owner.room(OUTPUT if self._receives == INPUT else INPUT)

    def _send_config(self) -> None:
        if self._config_due is None:
            return
        if not self._has_room(_RESERVE, 0):
            self._room_wanted = True
        else:
            self._fresh.append(OutgoingFrame(self._connection.config(self._config_due)))
            self._config_due = None
            self.flush(INPUT)

    def _acknowledge(self, frame: _Came) -> None:
        self._connection.acknowledge(frame.size, watched=frame.watched)

    def _send_credit(self) -> None:
        """Send the credit that is due, unless earlier credit still waits for the stream."""
        if not self._outbox.has_urgent and (credit := self._connection.credit()):
            self._fresh.append(OutgoingFrame(credit, urgent=True))

    def _say_bye(self, reason: str) -> None:
        if not self._dead and (bye := self._connection.bye(reason)):
            self._fresh.append(OutgoingFrame(bye))
            self.flush(self._receives)

    def _write(self, pieces: Sequence[Buffer]) -> int:
        try:
            return self._wire.send_nowait(pieces)
        except OSError as error:
            self._broken = self._broken or f"the stream broke: {error.strerror}"
            return 0

    def _write_waiting(self) -> None:
        self._outbox.remove(self._write(self._outbox.head()))

    async def _write_on(self) -> None:
        """Write waiting frames whenever the stream takes more, and tell the owner of room."""
        while True:
            await self._sent.wait()
            self._sent = trio.Event()
            while self._outbox.size:
                await self._wire.writable()
                self._write_waiting()
                self.flush(self._receives)  # credit that waited for this
                if self._broken:
                    return await self._await_end()
                self._tell_room()
            self._tell_room()

    async def _await_end(self) -> None:
        """Receive what the peer sent before the stream broke, often with a better reason."""
        reads = -1
        while reads != self._reads:
            reads = self._reads
            await trio.sleep(_GRACE)
        self._lose(self._broken)

    def _lose(self, reason: str) -> None:
        if not self._dead:
            self._dead = True
            if not self._leaving:
                self.owner.lost(reason)

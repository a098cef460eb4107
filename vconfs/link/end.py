"""The base of both ends of a link: the guest's driver and the host's back-end.

An end connects its ports to the link. It passes received buffers to its dialect and acts on the
resulting events; it frames the data of its ports by the dialect and sends it.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Final, Generic, Protocol, TypeVar

import trio

from vconfs.link._sender import Sender
from vconfs.link.draining import say_what_was_lost
from vconfs.link.link import Link, LinkOwner
from vconfs.link.taps import PortTap
from vconfs.overrides import override
from vconfs.protocol.dialect import End
from vconfs.protocol.events import Buffer, Data, Event

log: Final = logging.getLogger(__name__)

#: The most buffers handled in one turn, so that a peer that never pauses does not starve the
#: others. This is more than our own rings hold: data sent before a hang-up is taken with it.
TURN: Final = 1024


class PortCounters(Protocol):
    """The counters of a port that an end updates."""

    dropped: int


class EndPort(Protocol):
    """The part of a port that an end needs."""

    @property
    def counters(self) -> PortCounters:
        """The counters that the end updates."""

    @property
    def id(self) -> int:
        """The port's number."""

    @property
    def wants_data(self) -> bool:
        """True if there is space for more data (used where full rings throttle the peer)."""

    def room_came(self) -> None:
        """Called when there is room to send, after `LinkEnd.want_room` found none."""


P = TypeVar("P", bound=EndPort)
E = TypeVar("E", bound=End)


class LinkEnd(LinkOwner, Generic[P, E]):
    """One end of a link, which connects ports to it until the link is lost."""

    #: The name of the other side in the log.
    peer: str
    #: The word before a port's number in the log.
    port_word: ClassVar[str]

    def __init__(
        self, link: Link, end: E, ports: Mapping[int, P], taps: Mapping[int, PortTap]
    ) -> None:
        self.throttles: bool = end.throttles
        #: Why the link was lost. Empty if it was not lost, or was ended by `stop`.
        self.reason: str = ""
        #: Set when nothing more will come.
        self.stopped: trio.Event = trio.Event()
        self._link = link
        self._end = end
        self._ports = ports
        #: The number of requests to stop sending that the other side has not seen yet.
        self._unseen = 0
        #: Ports whose hang-up came before data for which they have no space yet (virtio1).
        self._hanging_up: set[int] = set()
        #: Ports that had no room to send when they looked: when they have some, they are told.
        self._without_room: set[int] = set()
        self._sender = Sender(link, end, taps)
        link.owner = self

    @property
    def in_flight(self) -> int:
        """The most bytes that can be on their way to us: see `Link.in_flight`."""
        return self._link.in_flight

    def stop(self, reason: str = "") -> None:
        """End the connection to the other side; the ports stay, hung up."""
        if self.stopped.is_set():
            return
        self._take_rest()
        if self.stopped.is_set():  # the link was lost by that
            return
        self.reason = reason
        self.stopped.set()
        self._drop(self._sender.close())
        self._detach_ports()

    @override
    def left(self) -> None:
        untaken = self._link.untaken()
        self._drop(untaken)
        if self.reason:
            lost = [(f"{self.port_word}{port_id}", size) for port_id, size in untaken.items()]
            say_what_was_lost(log, f"{self.peer} lost", lost)

    def untaken(self) -> Mapping[int, int]:
        """Return, by port, how many bytes it has sent that the other side has not taken.

        Only what can be known is counted, and only ports with such bytes are included.
        """
        return self._sender.untaken()

    def owed(self) -> Mapping[int, int]:
        """Like `untaken`, but this becomes less whenever the other side takes some of the bytes."""
        return self._sender.owed()

    async def leave(self, patience: float) -> None:
        """Leave the link (`Link.leave`). Ports still get what comes meanwhile; `stop` follows."""
        if not self.stopped.is_set():
            await self._link.leave(patience)

    def _drop(self, untaken: Mapping[int, int]) -> None:
        """Count bytes that the other side has not taken, and never will, as dropped."""
        for port_id, size in untaken.items():
            if (port := self._ports.get(port_id)) is not None:
                port.counters.dropped += size

    @abstractmethod
    def _detach_ports(self) -> None:
        """Notify the ports that they have no other side any more."""

    @abstractmethod
    def _handle(self, event: Event) -> None:
        """Act on an event of the dialect."""

    @abstractmethod
    def _set_connected(self, port: P, connected: bool) -> None:
        """Notify a port that the other side opened or closed it."""

    # --- calls by the link ----------------------------------------------------------------

    def received(self, queue: int) -> None:
        """Handle the buffers that came on `queue`, as long as its port wants data."""
        if self.stopped.is_set():
            return
        port = None if self.throttles else self._port_of(queue)
        if port is None or port.wants_data:
            self._take(queue, port)
        if port is not None and port.id in self._hanging_up and not self._has_more(port):
            self._hanging_up.discard(port.id)
            self._set_connected(port, False)

    def _take(self, queue: int, port: P | None, most: int = TURN) -> bool:
        """Handle up to `most` buffers, until there are none or `port` wants no more.

        Return True if there may be more.
        """
        link, receive, handle = self._link, self._end.receive, self._handle
        more = False
        for _ in range(most):
            if (buffer := link.receive(queue)) is None:
                break
            event = receive(queue, buffer)
            handle(event)
            if self._unseen and isinstance(event, Data):
                link.withhold(queue)
            else:
                link.done(queue)
            if port is not None and not port.wants_data:
                break
        else:
            more = True
            link.again(queue)
        link.flush(queue)
        self._taken()
        return more

    def _taken(self) -> None:
        """Called when all buffers that came together have been handled."""

    @override
    def room(self, queue: int) -> None:
        """Send what waited for room on `queue`, and tell the ports that wait for some."""
        self._sender.room(queue)
        self._tell_room()

    def _tell_room(self) -> None:
        found = []
        for port_id in self._without_room:
            self.want_room(port_id)
            if self.has_room(port_id):
                found.append(port_id)
        for port_id in found:
            self._without_room.discard(port_id)
            if port_id in self._ports:
                self._ports[port_id].room_came()

    @override
    @abstractmethod
    def config_changed(self) -> None:
        """Read the config space again."""

    @override
    def lost(self, reason: str) -> None:
        """End the connection because the other side left or broke a rule."""
        log.warning("%s lost: %s", self.peer, reason)
        self.stop(reason)

    # --- calls by the ports ---------------------------------------------------------------

    def has_room(self, port_id: int) -> bool:
        """True if a write of this port would take something, as far as is known."""
        return self._sender.has_room(port_id) or (
            self.throttles and self._sender.can_deposit(port_id)
        )

    def want_room(self, port_id: int) -> None:
        """Look for room for this port. If there is none, call its `room_came` when there is."""
        self._sender.find_room(port_id)
        if not self.has_room(port_id):
            self._without_room.add(port_id)
            self._link.want_room(self._end.data_queue(port_id))

    def send_nowait(self, port_id: int, data: Buffer) -> int:
        """Send as much of `data` as there is room for; return its size or raise WouldBlock."""
        sent = self._sender.send_nowait(port_id, data)
        if self._without_room:
            self._tell_room()
        return sent

    def send_later(self, port_id: int, data: Buffer) -> int:
        """Take some of `data`, to send it at the port's next turn, and return how much.

        Raise WouldBlock if the port has its own queue (virtio1), where there are no turns.
        """
        if not self.throttles:
            raise trio.WouldBlock
        return self._sender.deposit(port_id, data)

    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """Like `send_nowait`, but wait for a turn and for room first, as long as `wanted`.

        Afterwards the ports that found the queue taken are told that it is free.
        """
        try:
            return await self._sender.send(port_id, data, wanted)
        finally:
            self._tell_room()

    def nudge(self, port_id: int) -> None:
        """Make the tasks that wait to send for this port check whether that is still wanted."""
        self._sender.nudge(port_id)

    def open_port(self, port_id: int, opened: bool) -> None:
        """Send the message that the port was opened or closed here."""
        self._sender.post(self._end.port_open(port_id, opened), behind=port_id)

    def throttle(self, port_id: int, on: bool, seen: Callable[[], None]) -> None:
        """Ask the other side to stop sending to the port, or to resume.

        `seen` is called when the other side has seen the request to stop. Until then its data
        buffers are not given back. Those of control messages are, so that two ends that throttle
        each other do not block.
        """
        message = self._end.throttle(port_id, on)
        if message is None or not on:
            self._sender.post(message)
            return
        self._unseen += 1

        def seen_by_peer() -> None:
            self._unseen -= 1
            seen()
            if not self._unseen:
                self._link.release(self._end.receive_queue(port_id))

        self._sender.post(message, seen=seen_by_peer)

    def refill(self, port_id: int) -> None:
        """Fetch what the port's own queue holds: the port has space again (virtio1)."""
        if not self.throttles:
            self.received(self._end.receive_queue(port_id))

    # --- where each port has its own queue (virtio1) --------------------------------------

    def _port_of(self, queue: int) -> P | None:
        """Return the port that has `queue` to itself, and holds it back when full, or None."""
        port_id = self._end.port_of(queue)
        return None if port_id is None else self._ports.get(port_id)

    def _opened_by_peer(self, port: P, opened: bool) -> None:
        """Notify the port that the peer opened or closed its side, after the data sent before."""
        if port.id in self._hanging_up:  # a new connection: the old one ends here
            self._hanging_up.discard(port.id)
            self._set_connected(port, False)
        if not opened:
            self.refill(port.id)  # data sent before the hang-up
        if not opened and not self.throttles and self._has_more(port):
            self._hanging_up.add(port.id)
        else:
            self._set_connected(port, opened)

    def _has_queue(self, port_id: int) -> bool:
        return self._end.receive_queue(port_id) < self._end.queues

    def _take_last(self, port_id: int) -> None:
        """Fetch all data sent to a port that goes, however full it is.

        Otherwise the next port with this id would receive it.
        """
        self._hanging_up.discard(port_id)
        if not self.throttles:
            with self._link.taking_last():
                self._take_all(self._end.receive_queue(port_id))

    def _take_rest(self) -> None:
        """Fetch all data that was sent to our ports: the other side had accepted it."""
        with self._link.taking_last():
            for queue in {
                self._end.receive_queue(port_id)
                for port_id in self._ports
                if self._has_queue(port_id)
            }:
                self._take_all(queue)

    def _take_all(self, queue: int) -> None:
        """Handle the buffers that have come by now; a peer may go on sending meanwhile."""
        rest = self._link.arrived(queue)
        while rest > 0 and self._take(queue, None, min(rest, TURN)):
            rest -= TURN

    def _has_more(self, port: P) -> bool:
        """True if the port's own queue may hold more than was fetched."""
        return not port.wants_data or self._link.is_spent

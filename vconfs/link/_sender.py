"""The order in which ports send on a link.

Control messages go first, in order. Data waits its turn: a write that finds no room joins the end
of the queue, and when room comes each entry of the queue gets one share of it, in order. A new
write goes behind those that wait already. So ports that share a link's queue share it evenly,
however often they ask, and a port that may not send now (a throttled one) is skipped and delays no
other. A writer that cannot wait can deposit a little data, which is sent when its turn comes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Protocol

import trio
from attrs import define, field, frozen

from vconfs.link.busy_polling import SHARED
from vconfs.link.link import Link
from vconfs.link.taps import PortTap
from vconfs.protocol.events import Buffer, Message

#: The most bytes of memory for control messages that cannot be sent yet.
_BACKLOG_MAX = 32 << 20
#: The memory that one message uses beside its bytes: an object, and an entry in a queue.
_MESSAGE_COST = 64
#: The most bytes that can be deposited for a port.
_DEPOSIT_MAX = 4096


class SendingEnd(Protocol):
    """The part of a dialect that a sender needs."""

    header_size: int

    def data_queue(self, port_id: int) -> int: ...
    def data_header(self, port_id: int, size: int) -> bytes: ...


@frozen
class _Posted:
    """A control message that waits for room, and the call to make once the peer has seen it."""

    data: bytes
    seen: Callable[[], None] | None


class _Turn(ABC):
    """An entry of a port in the queue."""

    id: int

    @abstractmethod
    def give(self, room: int) -> Buffer:
        """Return data to send, of which `room` bytes fit; empty if there is nothing to send."""

    @abstractmethod
    def sent(self, size: int) -> bool:
        """Take note that `size` bytes were sent. Return True if another turn is wanted."""


@define(eq=False)
class _Waiter(_Turn):
    """A task that waits to send for a port."""

    id: int
    data: Buffer
    wanted: Callable[[], bool]
    task: trio.lowlevel.Task
    went: int = 0

    def give(self, room: int) -> Buffer:
        return self.data if self.wanted() else b""

    def sent(self, size: int) -> bool:
        self.went = size
        trio.lowlevel.reschedule(self.task)
        SHARED.others_wait = True
        return False


@define(eq=False)
class _Source(_Turn):
    """A port that is asked for data at each turn."""

    id: int
    ask: Callable[[int], Buffer]

    def give(self, room: int) -> Buffer:
        return self.ask(room)

    def sent(self, size: int) -> bool:
        return size > 0


@define(eq=False)
class _Deposit(_Turn):
    """Data of a writer that does not wait, to be sent at the port's turn, and what follows it."""

    id: int
    data: bytes
    messages: list[Message] = field(factory=list)

    def give(self, room: int) -> Buffer:
        return self.data

    def sent(self, size: int) -> bool:
        self.data = self.data[size:]
        return bool(self.data)


class Sender:
    """Sends the control messages and the data of all ports of one link.

    `taps` has the taps of the ports that are watched.
    """

    def __init__(
        self, link: Link, end: SendingEnd, taps: Mapping[int, PortTap] | None = None
    ) -> None:
        self._link = link
        self._end = end
        self._taps = {} if taps is None else taps
        self._closed = False
        self._backlog: dict[int, deque[_Posted]] = defaultdict(deque)
        self._backlog_size = 0
        self._turns: dict[int, deque[_Turn]] = defaultdict(deque)
        self._offering: set[Callable[[int], Buffer]] = set()  # of the sources in a queue
        self._deposits: dict[int, _Deposit] = {}  # those in a queue, by port

    def post(
        self,
        message: Message | None,
        behind: int | None = None,
        seen: Callable[[], None] | None = None,
    ) -> None:
        """Send a control message, now or as soon as there is room. Do nothing if it is None.

        It is sent after the data that was deposited for the port `behind`. For `seen` see
        `Link.send`.
        """
        if message is None or self._closed:
            return
        self._backlog_size += _cost(message.data)
        if behind is not None and (deposit := self._deposits.get(behind)):
            deposit.messages.append(message)
        else:
            self._post_now(message, seen)
        if self._backlog_size > _BACKLOG_MAX:
            self._link.owner.lost("the peer takes no control messages")

    def has_room(self, port_id: int) -> bool:
        """True if `send_nowait` would take data for this port, as far as is known.

        See `find_room`.
        """
        queue = self._end.data_queue(port_id)
        if self._turns.get(queue) or not self._may_send_data(queue):
            return False
        return self._link.room_for(queue, self._end.header_size) > 0

    def find_room(self, port_id: int) -> None:
        """Look for buffers that have become free, for `has_room`."""
        self._find_room(self._end.data_queue(port_id))

    def send_nowait(self, port_id: int, data: Buffer) -> int:
        """Send as much of `data` as there is room for, and return its size.

        Raise trio.WouldBlock if there is no room, or others use it first.
        """
        end = self._end
        queue = end.data_queue(port_id)
        if self._turns.get(queue):
            self._take_turns(queue)
        if self._closed or self._backlog.get(queue) or port_id in self._deposits:
            raise trio.WouldBlock
        room = self._link.find_room(queue, end.header_size)
        if not room:
            raise trio.WouldBlock
        return self._put(queue, port_id, data, room)

    def can_deposit(self, port_id: int) -> bool:
        """True if `deposit` would take data for this port."""
        turns = self._turns.get(self._end.data_queue(port_id), ())
        return not self._closed and all(turn.id != port_id for turn in turns)

    def deposit(self, port_id: int, data: Buffer) -> int:
        """Take some of `data`, to send it at the port's next turn, and return how much.

        Raise trio.WouldBlock if the port has an entry in the queue already, or the link is closed.
        This is for a writer that cannot wait, and would never find room among others that do.
        """
        if not self.can_deposit(port_id):
            raise trio.WouldBlock
        deposit = self._deposits[port_id] = _Deposit(
            port_id, bytes(memoryview(data)[:_DEPOSIT_MAX])
        )
        taken = len(deposit.data)
        self._turns[self._end.data_queue(port_id)].append(deposit)
        return taken

    def forget(self, port_id: int) -> int:
        """Drop the deposit of a port that is gone, and return its size.

        The next port with this id is a different one.
        """
        dropped = 0
        if deposit := self._deposits.pop(port_id, None):
            self._backlog_size -= sum(_cost(message.data) for message in deposit.messages)
            dropped = len(deposit.data)
            deposit.data = b""
            deposit.messages.clear()
        return dropped

    def untaken(self) -> Counter[int]:
        """Return, by port, how many bytes were taken here that are known not to be at the peer."""
        return self._deposited() + Counter(self._link.untaken())

    def owed(self) -> Counter[int]:
        """Like `untaken`, but this becomes less whenever the peer takes some of the bytes."""
        return self._deposited() + Counter(self._link.owed())

    async def send(self, port_id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """Like `send_nowait`, but wait for a turn and for room first.

        Return 0 if the link is closed, or if `wanted` is no longer true. It is checked again at
        each `nudge`.
        """
        await trio.lowlevel.checkpoint()
        if self._closed or not wanted():
            return 0
        try:
            return self.send_nowait(port_id, data)
        except trio.WouldBlock:
            pass
        if self._closed:
            return 0
        turns = self._turns[self._end.data_queue(port_id)]
        turn = _Waiter(port_id, data, wanted, trio.lowlevel.current_task())
        turns.append(turn)

        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            if turn not in turns:  # it is being served right now
                return trio.lowlevel.Abort.FAILED
            turns.remove(turn)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return turn.went

    def offer(self, port_id: int, give: Callable[[int], Buffer]) -> None:
        """At each turn of this port send what `give` returns, until it returns nothing.

        `give` is called with the number of bytes that fit.
        """
        if self._closed:
            return
        queue = self._end.data_queue(port_id)
        if give not in self._offering:
            self._offering.add(give)
            self._turns[queue].append(_Source(port_id, give))
        self._take_turns(queue)

    def nudge(self, port_id: int) -> None:
        """Make the tasks that wait to send for this port check whether that is still wanted."""
        turns = self._turns.get(self._end.data_queue(port_id))
        if not turns:
            return
        for turn in [turn for turn in turns if turn.id == port_id]:
            if isinstance(turn, _Waiter) and not turn.wanted():
                turns.remove(turn)
                turn.sent(0)

    def room(self, queue: int) -> None:
        """Use new room on `queue`."""
        self._send_backlog(queue)
        self._take_turns(queue)

    def close(self) -> Counter[int]:
        """Stop sending and wake all tasks that wait. Return the size of each port's deposit."""
        self._closed = True
        left = self._deposited()
        self._backlog.clear()
        for turns in self._turns.values():
            for turn in turns:
                if isinstance(turn, _Waiter):
                    turn.sent(0)
            turns.clear()
        self._deposits.clear()
        return left

    def _deposited(self) -> Counter[int]:
        return Counter(
            {
                port_id: len(deposit.data)
                for port_id, deposit in self._deposits.items()
                if deposit.data
            }
        )

    def _may_send_data(self, queue: int) -> bool:
        """True if no control messages wait for room on `queue`, which would go first."""
        return not self._closed and not self._backlog.get(queue)

    def _find_room(self, queue: int) -> int:
        """Look for free buffers; return how much data fits, whichever port's turn it is."""
        if not self._may_send_data(queue):
            return 0
        return self._link.find_room(queue, self._end.header_size)

    def _take_turns(self, queue: int) -> None:
        """Send one share of each entry in the queue, in order, as long as there is room."""
        turns = self._turns.get(queue)
        if not turns:
            return
        for _ in range(len(turns)):
            if not turns:  # served meanwhile: the peer may make more room at once
                return
            if isinstance(turns[0], _Source):
                self._link.want_room(queue)  # before the peer can make room
            room = self._find_room(queue)
            if not room or not turns:
                return
            self._serve(queue, turns.popleft(), room)

    def _serve(self, queue: int, turn: _Turn, room: int) -> None:
        data = turn.give(room)
        size = self._put(queue, turn.id, data, room) if len(data) else 0
        again = turn.sent(size) and not self._closed
        if isinstance(turn, _Deposit):
            self._served_deposit(queue, turn, again)
        elif again:
            self._turns[queue].append(turn)
        elif isinstance(turn, _Source):
            self._offering.discard(turn.ask)

    def _served_deposit(self, queue: int, deposit: _Deposit, again: bool) -> None:
        if again:
            self._turns[queue].appendleft(deposit)  # nothing of its port may overtake the rest
        elif self._deposits.get(deposit.id) is deposit:
            del self._deposits[deposit.id]
            for message in deposit.messages:
                self._post_now(message)

    def _put(self, queue: int, port_id: int, data: Buffer, room: int) -> int:
        link, end = self._link, self._end
        view = memoryview(data)[:room]
        size = len(view)
        if self._taps and (tap := self._taps.get(port_id)) is not None:
            tap.sent(view)
        sent = 0
        while sent < size:
            header = end.data_header(port_id, 0 if sent else size)
            sent += link.send(queue, header, view[sent:], port_id=port_id)
        link.flush(queue)
        return size

    def _post_now(self, message: Message, seen: Callable[[], None] | None = None) -> None:
        if not self._closed:  # sending the data before it may have closed the link
            self._backlog[message.queue].append(_Posted(message.data, seen))
            self._send_backlog(message.queue)

    def _send_backlog(self, queue: int) -> None:
        backlog = self._backlog[queue]
        sent = False
        while backlog and (capacity := self._link.find_buffer(queue, len(backlog[0].data))) > 0:
            posted = backlog.popleft()
            self._backlog_size -= _cost(posted.data)
            if len(posted.data) > capacity:
                self._link.owner.lost(f"the peer's buffers of {capacity} bytes are too small")
                return
            self._link.send(queue, posted.data, b"", posted.seen)
            sent = True
        if sent:
            self._link.flush(queue)


def _cost(message: bytes) -> int:
    return len(message) + _MESSAGE_COST

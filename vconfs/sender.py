"""Who may send next on a link.

Control messages go first, in order. Data waits its turn: a sender that finds no room queues up,
and gets one helping when it is at the head, so that ports which share a queue share it evenly.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Protocol

import trio

from vconfs.link import Link
from vconfs.protocol.events import Buffer, Message

#: Control messages that the peer gives no buffers for are kept up to this many bytes.
_BACKLOG_MAX = 8 << 20


class SendingEnd(Protocol):
    """What a sender needs of a dialect."""

    header_size: int

    def data_queue(self, id: int) -> int: ...  # noqa: D102
    def data_header(self, id: int, size: int) -> bytes: ...  # noqa: D102


class Sender:
    """Sends the control messages and the data of all ports of one link."""

    def __init__(self, link: Link, end: SendingEnd) -> None:
        self._link = link
        self._end = end
        self._closed = False
        self._backlog: dict[int, deque[bytes]] = defaultdict(deque)
        self._backlog_size = 0
        self._turn: dict[int, trio.StrictFIFOLock] = defaultdict(trio.StrictFIFOLock)
        self._room: dict[int, trio.lowlevel.ParkingLot] = defaultdict(trio.lowlevel.ParkingLot)

    def post(self, message: Message | None) -> None:
        """Send a control message, now or as soon as there is room; None: nothing to send."""
        if message is None or self._closed:
            return
        self._backlog_size += len(message.data)
        self._backlog[message.queue].append(message.data)
        self._send_backlog(message.queue)
        if self._backlog_size > _BACKLOG_MAX:
            self._link.owner.lost("the peer takes no control messages")

    def has_room(self, id: int) -> bool:
        """Whether `send_nowait` for this port would take something."""
        queue = self._end.data_queue(id)
        return self._free(queue) and self._link.room_for(queue, self._end.header_size) > 0

    def send_nowait(self, id: int, data: Buffer) -> int:
        """Send as much of `data` as there is room for; trio.WouldBlock: none, or not our turn."""
        queue = self._end.data_queue(id)
        if not self._free(queue):
            raise trio.WouldBlock
        return self._put(queue, id, data)

    async def send(self, id: int, data: Buffer, wanted: Callable[[], bool]) -> int:
        """Like `send_nowait`, but wait for a turn and for room first.

        Gives 0 when the link goes away, or when `wanted` does not hold any more; it is asked
        again after each `nudge`.
        """
        queue = self._end.data_queue(id)
        async with self._turn[queue]:
            while not self._closed and wanted():
                if not self._backlog[queue]:
                    try:
                        return self._put(queue, id, data)
                    except trio.WouldBlock:
                        pass
                await self._room[queue].park()
        return 0

    def nudge(self, id: int) -> None:
        """Let whoever waits to send for this port look whether it is still wanted."""
        queue = self._end.data_queue(id)
        if queue in self._room:
            self._room[queue].unpark()

    def room(self, queue: int) -> None:
        """Use the room that has come on `queue`."""
        self._send_backlog(queue)
        if queue in self._room:
            self._room[queue].unpark()

    def close(self) -> None:
        """Send nothing any more; whoever waits gives up."""
        self._closed = True
        self._backlog.clear()
        for lot in self._room.values():
            lot.unpark_all()

    def _free(self, queue: int) -> bool:
        if self._closed or (self._backlog.get(queue)):
            return False
        turn = self._turn.get(queue)
        return turn is None or not turn.locked()

    def _put(self, queue: int, id: int, data: Buffer) -> int:
        link, end = self._link, self._end
        header_size = end.header_size
        size = min(len(data), link.room_for(queue, header_size))
        if not size:
            raise trio.WouldBlock
        view = memoryview(data)
        header = end.data_header(id, size)
        sent = 0
        while sent < size:
            step = min(link.capacity(queue) - header_size, size - sent)
            link.send(queue, header, view[sent : sent + step])
            sent += step
            if sent < size:
                header = end.data_header(id, 0)
        link.flush(queue)
        return size

    def _send_backlog(self, queue: int) -> None:
        backlog = self._backlog[queue]
        sent = False
        while backlog and (capacity := self._link.capacity(queue)) > 0:
            message = backlog.popleft()
            self._backlog_size -= len(message)
            if len(message) > capacity:
                self._link.owner.lost(f"the peer's buffers of {capacity} bytes are too small")
                return
            self._link.send(queue, message, b"")
            sent = True
        if sent:
            self._link.flush(queue)

"""The way out of a port: who may write, and how long a write waits.

Nothing is kept here. A write sends what there is room for on the line, waits for its turn and for
room, or is refused: by the state of the port, or because its patience is over.
"""

from __future__ import annotations

import errno
import math
import os
from typing import NoReturn

import trio
from attrs import define, field
from trio.lowlevel import ParkingLot

from vconfs.guest._attachment import Attachment, PortLine
from vconfs.guest._patience import WaitLimit
from vconfs.protocol.events import Buffer


@define(eq=False)
class Outbox:
    """What programs write to the host."""

    _at: Attachment
    #: Held by the writer that waits.
    turn: trio.StrictFIFOLock = field(init=False, factory=trio.StrictFIFOLock)
    _writable: ParkingLot = field(init=False, factory=ParkingLot)
    _limit: WaitLimit = field(init=False, factory=WaitLimit)

    @property
    def has_room(self) -> bool:
        """True if a write would send something, as far as is known: see `want_room`."""
        at = self._at
        if not at.state.sends or at.mount_end.begun or at.way_out is None:
            return False
        return at.way_out.has_room(at.id)

    def want_room(self) -> None:
        """Look for room on the line. If there is none, `Port.room_came` is called when there is."""
        if self._at.way_out is not None and self._may_send(accepted=False):
            self._at.way_out.want_room(self._at.id)

    def write_nowait(self, data: Buffer, *, nonblock: bool) -> int:
        """Send as much of `data` as fits now, as `Port.write_nowait` describes."""
        at = self._at
        may_send = at.state.sends and not at.mount_end.begun
        line = at.way_out if may_send else self._check_writable(nonblock=nonblock)
        if line is None or self.turn.locked():
            raise trio.WouldBlock
        try:
            sent = line.send_nowait(at.id, data)
        except trio.WouldBlock:
            if not nonblock:
                raise
            sent = line.send_later(at.id, data)
        at.counters.bytes_out += sent
        return sent

    async def write(self, data: Buffer, *, accepted: bool) -> int:
        """Wait to send some of `data`, as `Port.write` describes."""
        while True:
            with self._limit.applied(math.inf if accepted else self._patience):
                async with self.turn:
                    return await self._send(data, accepted)
            patience = self._patience
            if patience < math.inf:  # else the host has resumed at this very moment
                self._limit.gave_up(patience)
                _fail(self._at.state.refusal)

    async def _send(self, data: Buffer, accepted: bool) -> int:
        at = self._at
        while True:
            line = self._check_writable(accepted=accepted)
            if line is None:
                await self._writable.park()
                continue
            sent = await line.send(at.id, data, lambda: self._may_send(accepted))
            if sent:
                at.counters.bytes_out += sent
                return sent

    def _may_send(self, accepted: bool) -> bool:
        return self._at.state.sends and (accepted or not self._at.mount_end.begun)

    @property
    def _patience(self) -> float:
        """The number of seconds that a write may wait from now on."""
        return self._at.options.throttle if self._at.state.refusal else math.inf

    def _check_writable(self, *, nonblock: bool = False, accepted: bool = False) -> PortLine | None:
        """Return the line to write to, or None if the caller has to wait."""
        at = self._at
        state = at.state
        if state.removed:
            _fail(state.refusal)
        if at.mount_end.begun and not accepted:
            _fail(errno.ENOTCONN)
        if state.sends:
            return at.way_out
        if state.refusal:
            patience = at.options.throttle
            gives_up = not patience or (nonblock and patience < math.inf)
            if at.mount_end.over or (gives_up and not accepted):
                _fail(state.refusal)
        return None

    def restart_patience(self) -> None:
        """Let each waiting write go on for the full time: the reason to wait has changed."""
        self._limit.restart(self._patience)

    def wake(self) -> None:
        """Make waiting writes check whether they may send now, or must not any more."""
        if self._writable:
            self._writable.unpark_all()
        if self._at.line is not None and self.turn.locked():
            self._at.line.nudge(self._at.id)


def _fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))

"""Looking for more work of a busy peer before waiting to be notified of it.

A notification costs a system call here, one at the peer, and a turn of the event loop: more than
most buffers cost themselves. The next buffer of a peer that is sending comes within microseconds,
or as soon as the peer has the CPU. So we yield the CPU and look again, and ask for no notifications
meanwhile.

The event loop is away during that time. So only a few peers of a process are looked at in this way,
for a short time each. If another program keeps the CPU, a yield delays us more than a notification
would, and for a while there are no more of them. A peer that sends only now and then is busy for a
moment each time. So after looks in vain some are skipped, twice as many each time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

#: A peer is busy if this many bytes went to it or came from it since it was looked at last.
_BUSY: Final = 2048
#: The most peers that may be busy at the same time, if any of them is to be looked at again.
_PEERS_MAX: Final = 4
#: Seconds after which a peer that was busy no longer counts.
_FORGOTTEN: Final = 0.01
#: Seconds for which one peer is looked at again, before other tasks have their turn.
_MOST: Final = 0.001
#: A yield of more seconds than this went to another program; then there is none for the pause.
_TAKEN: Final = 0.002
_PAUSE: Final = 0.05
#: Seconds of the CPU's time for looks in vain at a peer. It may be making its next buffer.
PATIENCE: Final = 20e-6
#: A yield of more seconds than this has switched to another program, which costs this much time.
_SWITCHED: Final = 3e-6
_SWITCHES: Final = 5e-6
#: How often a busy peer is not looked at again, at most, after looks in vain.
_SKIPS_MAX: Final = 64


class BusyPolling:
    """What the looks at all peers of this process share.

    Tests set the clock, and the call that lets other programs run.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        let_others_run: Callable[[], None] = os.sched_yield,
    ) -> None:
        self.now = now
        self._let_others_run = let_others_run
        #: True if a task was woken since this was set to False. It needs its turn soon.
        self.others_wait: bool = False
        self._busy: dict[int, float] = {}  # when each peer was busy last, in this order
        self._not_before = 0.0

    def deadline(self, peer: object) -> float:
        """Return until when to look at a busy peer again; 0 for not at all."""
        now, busy = self.now(), self._busy
        busy.pop(id(peer), None)
        while busy and next(iter(busy.values())) < now - _FORGOTTEN:
            del busy[next(iter(busy))]
        busy[id(peer)] = now
        return now + _MOST if len(busy) <= _PEERS_MAX and now >= self._not_before else 0

    def let_others_run(self, before: float) -> float:
        """Yield the CPU, from the time `before` on; return the time afterwards."""
        self._let_others_run()
        now = self.now()
        if now - before > _TAKEN:
            self._not_before = now + _PAUSE
        return now


class Looks:
    """The decision whether to look again at one peer.

    Call `begin` when something has moved. Call `again` before each further look, until it returns
    False or you have found enough.
    """

    def __init__(self, polling: BusyPolling) -> None:
        self.polling: BusyPolling = polling
        self._patience = 0.0
        self._deadline = 0.0  # 0 if no looks have begun
        self._is_first = False  # True if there was no look since `begin`
        self._left = 0.0  # seconds of the patience
        self._resumed = 0.0  # when other programs had run last
        self._in_vain = False  # True if the last looks have found nothing
        #: How often `begin` does nothing now, and after the next looks in vain.
        self._skips, self._skips_next = 0, 1

    def begin(self, moved: int, patience: float = 0.0) -> bool:
        """Return True if it is worth looking again at the peer, now that `moved` bytes moved.

        Looks in vain end when they have cost `patience` seconds, without the time of other
        programs, or when a task was woken meanwhile; with 0, after the first.
        """
        self.polling.others_wait = False
        self._deadline = 0.0
        if moved < _BUSY:
            return False
        if self._in_vain:
            self._in_vain = False
            self._skips, self._skips_next = self._skips_next, min(2 * self._skips_next, _SKIPS_MAX)
        deadline = self.polling.deadline(self)
        if self._skips or not deadline:
            self._skips = max(0, self._skips - 1)
            return False
        self._deadline, self._left, self._patience = deadline, patience, patience
        self._is_first = self._in_vain = True
        return True

    def found(self) -> None:
        """Take note that the last look has found something."""
        self._in_vain = False
        self._skips_next = 1

    def again(self, *, found: bool) -> bool:
        """Let other programs run. Return False, without that, if it is time for other tasks.

        `found` says whether the last look has found something.
        """
        if not self._deadline:
            return False
        before = self.polling.now()
        if self._is_first:
            self._is_first = False
        elif found:
            self.found()
            self._left = self._patience
        else:
            self._left -= before - self._resumed
        others_wait = self.polling.others_wait and not found
        if before >= self._deadline or self._left < 0 or others_wait:
            self._deadline = 0.0
            return False
        self._resumed = self.polling.let_others_run(before)
        if self._resumed - before > _SWITCHED:
            self._left -= _SWITCHES
        return True


#: That of this process.
SHARED: Final = BusyPolling()

"""Looking for more work of a busy peer before waiting to be notified of it.

A notification costs a system call here, one at the peer, and a turn of the event loop: more than
most buffers cost themselves. The next buffer of a peer that is sending comes within microseconds,
or as soon as the peer has the CPU. So we yield the CPU and look again, and ask for no notifications
meanwhile.

The event loop is away during that time. So only a few peers of a process are looked at in this way,
for a short time each. If another program keeps the CPU, a yield delays us more than a notification
would, and for a while there are no more of them.
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


class BusyPolling:
    """The decision whether to look again at one of the peers of this process.

    Tests set the clock, and the call that lets other programs run.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        let_others_run: Callable[[], None] = os.sched_yield,
    ) -> None:
        self._now = now
        self._let_others_run = let_others_run
        self._busy: dict[int, float] = {}  # when each peer was busy last, in this order
        self._not_before = 0.0

    def deadline(self, peer: object, moved: int) -> float:
        """Return until when to look at a peer again, after `moved` bytes moved; 0 for not at all.

        It is for `goes_on`, which is called before each further look.
        """
        if moved < _BUSY:
            return 0
        now, busy = self._now(), self._busy
        busy.pop(id(peer), None)
        while busy and next(iter(busy.values())) < now - _FORGOTTEN:
            del busy[next(iter(busy))]
        busy[id(peer)] = now
        return now + _MOST if len(busy) <= _PEERS_MAX and now >= self._not_before else 0

    def goes_on(self, deadline: float) -> bool:
        """Let other programs run. Return False, without that, if the deadline has passed."""
        before = self._now()
        if before >= deadline:
            return False
        self._let_others_run()
        now = self._now()
        if now - before > _TAKEN:
            self._not_before = now + _PAUSE
        return True


#: That of this process.
SHARED: Final = BusyPolling()

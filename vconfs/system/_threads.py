"""Starting threads from the event loop, without waiting until they run.

`threading.Thread.start` waits until the new thread has had a processor, which can take long on a
busy machine. Without that, Python 3.11 crashes if a thread begins to run when the interpreter has
ended. So the process waits for such threads when it ends, until they have begun.
"""

from __future__ import annotations

import _thread
import atexit
import errno
import threading
import time
from collections.abc import Callable
from typing import Final

#: Seconds that new threads have to begin when the process ends.
_PATIENCE: Final = 1.0


class Starter:
    """Starts threads, and counts those that have not begun to run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starting = 0

    def start(self, function: Callable[[], object]) -> None:
        """Call a function in a new thread. Raise OSError if the system has no more threads."""
        self._count(1)
        try:
            _thread.start_new_thread(self._run, (function,))
        except RuntimeError as error:
            self._count(-1)
            raise OSError(errno.EAGAIN, str(error)) from None

    def wait_all_run(self) -> None:
        """Wait until all threads run, but not for their end."""
        end = time.monotonic() + _PATIENCE
        while self._starting and time.monotonic() < end:
            time.sleep(0.001)

    def _run(self, function: Callable[[], object]) -> None:
        self._count(-1)
        function()

    def _count(self, change: int) -> None:
        with self._lock:
            self._starting += change


#: That of this process.
STARTER: Final = Starter()
atexit.register(STARTER.wait_all_run)

"""Measure long steps of the event loop, to find work that should be done in portions.

While a task takes a step, from one wait to the next, no other task runs: no signal is answered, and
no file of a mount can be read. `LoopWatch` measures each step of a trio run.

Other programs may keep the processors busy. That makes any step long, and is not the step's fault.
The time of a step is therefore its wall time without the time for which its thread could run and
waited for a processor. The kernel counts that time in /proc/thread-self/schedstat. What remains is
the time for which the thread computed (its CPU time), and the time for which it was blocked: in a
system call, by a page fault, or by another thread that held the interpreter's lock. A kernel that
does not count it (one without CONFIG_SCHED_INFO) leaves the whole wall time.

A hypervisor can take the processor away as well, which no count of the thread shows. So a step in
which the thread never gave up its processor by itself (getrusage counts these voluntary context
switches) was not blocked: only its CPU time counts.

The place of a step is where it ended, which is where its task waits now. A long step is also looked
at by a second thread while it runs; that place is nearer to the reason.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from traceback import walk_stack
from typing import Final

import trio
from attrs import frozen

from vconfs.syntax.printable import printable
from vconfs.system._places import place_in
from vconfs.system.log_once import LogOnce

log: Final = logging.getLogger(__name__)

#: Seconds that a step may take.
LIMIT: Final = 0.1
#: The environment variable that turns the watch of a daemon on.
VARIABLE: Final = "VCONFS_DEBUG"
_COUNTS: Final = "/proc/thread-self/schedstat"


@frozen
class Step:
    """One step of a task, from one wait to the next."""

    task: str
    place: str
    #: Seconds for which the event loop was away, and for which it computed.
    away: float
    cpu: float

    def __str__(self) -> str:
        where = f"in {self.place}, task {self.task}" if self.place else f"in task {self.task}"
        blocked = max(self.away - self.cpu, 0)
        return f"{self.away * 1000:.0f} ms ({blocked * 1000:.0f} ms blocked) {where}"


class LoopWatch(trio.abc.Instrument):
    """Measures the steps of tasks, and calls `report` with each that takes longer than LIMIT.

    Only steps of tasks for which `counts` returns True are measured. `elsewhere` returns a number
    of seconds that grows while the thread computes something that is not to be measured.
    """

    def __init__(
        self,
        report: Callable[[Step], None],
        counts: Callable[[trio.lowlevel.Task], bool] = lambda task: True,
        elsewhere: Callable[[], float] = lambda: 0.0,
    ) -> None:
        #: The longest step of all.
        self.longest: Step | None = None
        self._report = report
        self._counts = counts
        self._elsewhere = elsewhere
        self._thread = 0
        self._delays = -1  # the descriptor of the kernel's counts for the thread, if it has any
        # Of the step that is running: its number (0 if none is), and the state at its begin.
        self._number = 0
        self._steps = 0
        self._begun = self._begun_cpu = self._begun_delay = self._begun_elsewhere = 0.0
        self._begun_switches = 0
        #: The number of a step that was looked at while it ran, and where it was.
        self._seen: tuple[int, str] = (0, "")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the trio run of the present thread while the block runs."""
        self._thread = threading.get_ident()
        with suppress(OSError):
            self._delays = os.open(_COUNTS, os.O_RDONLY | os.O_CLOEXEC)
        ended = threading.Event()
        looker = threading.Thread(target=self._look, args=[ended], name="loop watch", daemon=True)
        looker.start()
        try:
            yield
        finally:
            self._number = 0
            ended.set()
            looker.join()
            if self._delays >= 0:
                os.close(self._delays)
                self._delays = -1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """See trio.abc.Instrument."""
        if self._counts(task):
            self._begun_delay = self._delay()
            self._begun_switches = _switches()
            self._begun_elsewhere = self._elsewhere()
            self._begun_cpu = time.thread_time()
            self._begun = time.perf_counter()
            self._steps += 1
            self._number = self._steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """See trio.abc.Instrument."""
        number, self._number = self._number, 0
        if not number:
            return
        wall = time.perf_counter() - self._begun
        if self.longest is not None and wall <= self.longest.away and wall <= LIMIT:
            return
        all_cpu = time.thread_time() - self._begun_cpu
        cpu = max(all_cpu - (self._elsewhere() - self._begun_elsewhere), 0.0)
        blocked = 0.0
        if _switches() > self._begun_switches:
            blocked = max(wall - (self._delay() - self._begun_delay) - all_cpu, 0.0)
        away = cpu + blocked
        if self.longest is not None and away <= self.longest.away and away <= LIMIT:
            return
        step = Step(task.name, self._place(number, task), away, cpu)
        if self.longest is None or away > self.longest.away:
            self.longest = step
        if away > LIMIT:
            self._report(step)

    def _delay(self) -> float:
        """Return for how many seconds the thread has waited for a processor."""
        if self._delays < 0:
            return 0.0
        return int(os.pread(self._delays, 100, 0).split()[1]) / 1e9

    def _place(self, number: int, task: trio.lowlevel.Task) -> str:
        seen, place = self._seen
        return place if seen == number and place else place_in(task.iter_await_frames())

    def _look(self, ended: threading.Event) -> None:
        """Look where each step is that has run for half of LIMIT (in a thread)."""
        while not ended.wait(LIMIT / 4):
            number = self._number
            if not number or number == self._seen[0]:
                continue
            if time.perf_counter() - self._begun > LIMIT / 2:
                frames = list(walk_stack(sys._current_frames().get(self._thread)))
                self._seen = number, place_in(reversed(frames))


def _switches() -> int:
    """Return how many times this thread has given up its processor by itself."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


async def watch_loop_if_asked() -> None:
    """Watch the event loop until cancelled, if VCONFS_DEBUG is set, and log what was found.

    If the value has a slash, it is the path of a file that is appended to, instead of the log.
    """
    if not (asked := os.environ.get(VARIABLE)):
        return
    trouble = LogOnce(log)

    def report(step: Step) -> None:
        trouble.warning((step.task, step.place), "the event loop was away: %s", step)

    watch = LoopWatch(report)
    with _logging_to(asked), watch.running():
        trio.lowlevel.add_instrument(watch)
        try:
            await trio.sleep_forever()
        finally:
            trio.lowlevel.remove_instrument(watch)
            if watch.longest is not None:
                log.info("the longest that the event loop was away: %s", watch.longest)


@contextmanager
def _logging_to(place: str) -> Iterator[None]:
    """Let our lines go to a file while the block runs, if `place` is a path."""
    if "/" not in place:
        yield
        return
    try:
        handler = logging.FileHandler(place)
    except OSError as error:
        log.warning("%s: %s: %s; logging here", VARIABLE, printable(place), error.strerror)
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s vconfs[%(process)d]: %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = True
        handler.close()

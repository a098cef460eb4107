"""The watch of the event loop in all tests: what vconfs does in one step takes at most 100 ms.

In a test's own process, the steps count of tasks that run a function of vconfs, and of callbacks
into the loop. The steps of the test itself and of its fixtures do not: they may prepare what they
like. Only the time counts for which such a step computes, because it can be blocked by what else
this process does: other threads hold the interpreter's lock, one that forks for a long time.

Of the daemons that a test starts, all steps count once the daemon is ready, and the time for which
they are blocked, too.

Collections of garbage do not count in a test's own process, where the garbage and the heap are
pytest's. The limit grows with the time that a fixed computation takes just then, compared with the
start of the run: other programs that share a processor or its caches make each step longer.

The marker `@pytest.mark.busy("why")` exempts a test: one that stops a daemon by SIGSTOP, which can
be in the middle of a step.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import trio
from attrs import define, field, frozen

from vconfs.system._places import is_ours
from vconfs.system.loop_watch import LIMIT, VARIABLE, LoopWatch, Step

_SAID = re.compile(r".*vconfs\[\d+\]: (.*?): ((\d+) ms .*)")
_LONGEST = "the longest that the event loop was away"


@frozen
class Away:
    """The event loop was away: for how many seconds, and what is known of it."""

    seconds: float
    told: str


def _counts(task: trio.lowlevel.Task) -> bool:
    code = getattr(task.coro, "cr_code", None)
    return code is None or is_ours(code.co_filename) or task.name == "<TrioEntryQueue>"


def _fixed_computation() -> float:
    """Return the seconds of processor time that a fixed computation takes at best just now."""
    times = []
    for _ in range(5):
        begun = time.thread_time()
        sum(number % 7 for number in range(50_000))
        times.append(time.thread_time() - begun)
    return min(times)


@define
class Suite:
    """What was seen in one run of the tests."""

    folder: Path = field(factory=lambda: Path(tempfile.mkdtemp(prefix="watch")))
    longest: Away = Away(0.0, "none was seen")
    _too_long: list[str] = field(factory=list)
    _read: int = 0
    #: Seconds of collections of garbage so far.
    _collecting: float = 0.0
    _collection_begun: float = 0.0
    _fixed_time: float = field(factory=lambda: _fixed_computation())

    def begin(self) -> None:
        """Watch each trio run of this process, and the daemons that it starts."""
        self.folder.chmod(0o755)
        self._log.touch()
        self._log.chmod(0o666)  # some daemons run as other users
        os.environ[VARIABLE] = str(self._log)
        trio.run = self._watched(trio.run)  # type: ignore[assignment] # pytest-trio has no fixture for this
        gc.callbacks.append(self._on_collection)

    def end(self) -> None:
        gc.callbacks.remove(self._on_collection)
        shutil.rmtree(self.folder, ignore_errors=True)

    def take_too_long(self, test: str, *, counts: bool) -> list[str]:
        """Return the steps that took too long since the last call; they were in this test.

        Without `counts`, they are not compared with the longest.
        """
        longest = self.longest
        self._read_log(test)
        if not counts:
            self.longest = longest
        too_long, self._too_long = self._too_long, []
        return too_long

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _watched(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def report(step: Step) -> None:
            if step.cpu > self._limit():
                self._too_long.append(str(step))

        @wraps(run)
        def watched_run(*args: Any, instruments: Any = (), **options: Any) -> Any:
            watch = LoopWatch(report, _counts, lambda: self._collecting)
            with watch.running():
                try:
                    return run(*args, instruments=[*instruments, watch], **options)
                finally:
                    if watch.longest is not None:
                        self._note(watch.longest)

        return watched_run

    def _on_collection(self, phase: str, info: object) -> None:
        if phase == "start":
            self._collection_begun = time.thread_time()
        else:
            self._collecting += time.thread_time() - self._collection_begun

    def _limit(self) -> float:
        return LIMIT * max(1.0, _fixed_computation() / self._fixed_time)

    def _note(self, step: Step) -> None:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
        if step.away > self.longest.seconds:
            self.longest = Away(step.away, f"{step}, {test}")

    def _read_log(self, test: str) -> None:
        with self._log.open() as log:
            log.seek(self._read)
            for line in log:
                if (said := _SAID.match(line)) is None:
                    continue
                what, told, ms = said.groups()
                if int(ms) / 1000 > self.longest.seconds:
                    self.longest = Away(int(ms) / 1000, f"{told}, a daemon of {test}")
                if what != _LONGEST and int(ms) / 1000 > self._limit():
                    self._too_long.append(told)
            self._read = log.tell()

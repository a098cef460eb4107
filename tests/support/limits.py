"""A limit for every test: one that hangs fails alone, and says where each of its tasks is.

`@pytest.mark.limit(SECONDS)` sets another limit than that of the test's folder. After it, these
happen in turn:

1. A trio test is cancelled, and 5 seconds later what it has shielded. In another test, an
   exception is raised.
2. The exception is raised as well if the trio test did not end: a call blocks its thread.
3. The mounts of this process are aborted: no signal wakes a call that waits for one of them.
4. The run ends with the stacks of all threads.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, TypeVar

import pytest
import trio
from hypothesis import is_hypothesis_test

T = TypeVar("T")

#: True if the long forms of tests are asked for: `make test-long`.
LONG = bool(os.environ.get("VCONFS_LONG"))
#: Seconds that a test may take, by its folder; and one of many examples, and one in its long form.
FOLDERS = {"unit": 10, "fuse": 20, "mount": 30, "qemu": 40}
DEFAULT, EXAMPLES, LONG_FORM = 60, 60, 1800
#: Seconds that the setup and the teardown of fixtures may take at least: some boot a guest.
FIXTURES = 150.0
#: Seconds from one of these to the next, and after the limit when mounts are aborted, and when the
#: run ends at the earliest and at the latest.
_NEXT, _ABORT, _EXIT, _LAST_EXIT = 5.0, 15.0, 60.0, 500.0
_OWN_THREAD = "limits of tests"

_TESTS = Path(__file__).parents[1]
#: Parts of the names of files whose frames say nothing of a test.
_MACHINERY = ("/pluggy/", "/_pytest/", "/pytest/", "/pytest_trio/", "/trio/", "<frozen", __file__)


class LastResort:
    """What happens to a test that neither a cancellation nor an exception ends.

    It has one thread for all tests: to start and end one for each takes longer than most tests.
    """

    def __init__(self, errors: IO[str]) -> None:
        self._errors = errors
        self._abort_at = math.inf
        self._exit_at = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=_OWN_THREAD, daemon=True)

    def begin(self) -> None:
        """Begin to watch the tests of a run."""
        self._thread.start()

    def end(self) -> None:
        """Watch no more."""
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def hold(self, seconds: float) -> Iterator[None]:
        """Abort mounts, and end the run, if what runs inside takes much longer than `seconds`."""
        now = time.monotonic()
        # This starts a thread in C, as the interpreter's lock can be what is waited for; but
        # seldom, because the time need not be exact.
        if not _EXIT <= self._exit_at - now - seconds <= _LAST_EXIT:
            later = seconds + (_EXIT + _LAST_EXIT) / 2
            faulthandler.dump_traceback_later(later, exit=True, file=self._errors)
            self._exit_at = now + later
        self._abort_at = now + seconds + _ABORT
        try:
            yield
        finally:
            self._abort_at = math.inf

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            if time.monotonic() > self._abort_at:
                self._abort_at = math.inf
                abort_mounts()


class Limit:
    """The limit of what runs at present, in the main thread."""

    def __init__(self, last_resort: LastResort) -> None:
        self._last_resort = last_resort
        self._seconds = 0.0
        self._alarms = 0
        self._scope: trio.CancelScope | None = None
        self._stacks = ""

    @contextmanager
    def hold(self, seconds: float) -> Iterator[None]:
        """Fail what runs inside, in the main thread, if it takes longer."""
        self._seconds, self._alarms, self._stacks = seconds, 0, ""
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, seconds, _NEXT)
        try:
            with self._last_resort.hold(seconds):
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def run(
        self,
        call: Callable[[], Awaitable[T]],
        clock: trio.abc.Clock | None = None,
        instruments: Sequence[trio.abc.Instrument] = (),
    ) -> T:
        """Run a trio test, which is cancelled at the limit."""
        self._scope = trio.CancelScope()
        try:
            return trio.run(self._in_scope, self._scope, call, clock=clock, instruments=instruments)
        except BaseException:
            if self._stacks:
                raise pytest.fail.Exception(self._message, pytrace=False) from None
            raise
        finally:
            self._scope = None

    async def _in_scope(self, scope: trio.CancelScope, call: Callable[[], Awaitable[T]]) -> T:
        with scope:
            return await call()
        raise trio.TooSlowError

    @property
    def _message(self) -> str:
        return f"the test took longer than {self._seconds:g} s\n{self._stacks}"

    def _on_alarm(self, _: int, interrupted: FrameType | None) -> None:
        self._alarms += 1
        # Not empty if a task works, or blocks the event loop.
        working = _format(traceback.walk_stack(interrupted), reverse=True)
        if self._scope is not None and self._alarms <= 2:
            try:
                trio.lowlevel.current_trio_token().run_sync_soon(self._cancel, self._scope, working)
            except RuntimeError:
                pass  # the trio run has not begun, or is over
            else:
                return
        self._stacks = stacks_of_threads()
        pytest.fail(self._message, pytrace=False)

    def _cancel(self, scope: trio.CancelScope, working: list[str]) -> None:
        if scope.cancel_called:
            remove_shields()
        else:
            self._stacks = "".join([*working, stacks_of_tasks()])
            scope.cancel()


def tasks() -> Iterator[trio.lowlevel.Task]:
    """Return the tasks of this trio run."""
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root else []
    while waiting:
        task = waiting.pop()
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        yield task


def remove_shields() -> None:
    """Let a cancellation reach what is shielded from it."""
    for task in tasks():
        status: trio._core._run.CancelStatus | None = task._cancel_status
        while status is not None:
            status._scope.shield = False
            status = status._parent


def stacks_of_tasks() -> str:
    """Return where each task of this trio run waits."""
    lines = []
    for task in tasks():
        if frames := _format(task.iter_await_frames()):
            lines += [f"task {task.name}:\n", *frames]
    return "".join(lines)


def stacks_of_threads() -> str:
    """Return where each thread of this process is."""
    lines = []
    for thread in threading.enumerate():
        if thread.name == _OWN_THREAD:
            continue
        if frame := sys._current_frames().get(thread.ident or 0):
            frames = _format(traceback.walk_stack(frame), reverse=True)
            lines += [f"thread {thread.name}:\n", *frames]
    return "".join(lines)


def _format(frames: Iterator[tuple[FrameType, int]], *, reverse: bool = False) -> list[str]:
    """Return a stack, without what is the same for every test."""
    stack = traceback.StackSummary.extract(frames)
    shown = [
        line
        for frame, line in zip(stack, stack.format(), strict=True)
        if not any(name in frame.filename for name in _MACHINERY)
    ]
    return shown[::-1] if reverse else shown


def abort_mounts() -> None:
    """Let the kernel give up each mount whose session this process is."""
    folder = Path("/proc/self/fd")
    for name in os.listdir(folder):
        try:
            if os.readlink(folder / name) == "/dev/fuse":
                with open(os.devnull) as nothing:
                    os.dup2(nothing.fileno(), int(name), inheritable=False)
        except OSError:
            pass  # it was closed meanwhile


class LimitPlugin:
    """Put the limits on the tests of a run."""

    def __init__(self) -> None:
        # Taken before output is captured: what ends the run is to be seen.
        self._last_resort = LastResort(os.fdopen(os.dup(2), "w"))
        self._limit = Limit(self._last_resort)

    def pytest_sessionstart(self) -> None:
        self._last_resort.begin()

    def pytest_sessionfinish(self) -> None:
        self._last_resort.end()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if item.get_closest_marker("trio"):
                item.add_marker(pytest.mark.trio(run=self._limit.run), append=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        with self._limit.hold(max(limit_of(item), FIXTURES)):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with self._limit.hold(limit_of(item)):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        with self._limit.hold(max(limit_of(item), FIXTURES)):
            return (yield)


def limit_of(item: pytest.Item) -> float:
    """Return how many seconds a test may take: more on a machine that does other things as well."""
    marker = item.get_closest_marker("limit")
    usual = (FOLDERS[name] for name in FOLDERS if _TESTS / name in item.path.parents)
    seconds = float(marker.args[0]) if marker else next(usual, DEFAULT)
    if is_hypothesis_test(getattr(item, "obj", None)):
        seconds = max(seconds, EXAMPLES)
    if LONG:
        seconds = max(seconds, LONG_FORM)
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))

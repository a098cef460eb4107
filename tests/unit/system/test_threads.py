"""Threads that begin as the process ends."""

from __future__ import annotations

import _thread
import errno
import threading
import time
from collections.abc import Callable

import pytest

from vconfs.system._threads import Starter
from vconfs.system.aside import Aside


def test_the_process_ends_only_when_new_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for a call that blocks."""
    starter, start = Starter(), _thread.start_new_thread
    may_start, blocked, ran = threading.Event(), threading.Event(), threading.Event()

    def start_late(
        function: Callable[[Callable[[], object]], None], arguments: tuple[Callable[[], object]]
    ) -> int:
        def run() -> None:
            may_start.wait()
            ran.set()
            function(*arguments)

        return start(run, ())

    monkeypatch.setattr(_thread, "start_new_thread", start_late)
    starter.start(blocked.wait)
    late = threading.Timer(0.05, may_start.set)
    late.start()
    starter.wait_all_run()
    assert ran.is_set()
    assert not blocked.is_set()
    blocked.set()
    late.join()


def test_a_thread_that_never_runs_delays_the_end_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vconfs.system._threads._PATIENCE", 0.01)
    monkeypatch.setattr(_thread, "start_new_thread", lambda function, arguments: 0)
    starter = Starter()
    starter.start(lambda: None)
    begun = time.monotonic()
    starter.wait_all_run()
    assert 0.01 <= time.monotonic() - begun < 1


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: object, arguments: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", fail)
    monkeypatch.setattr("vconfs.system._threads._PATIENCE", 60.0)


def test_there_is_nothing_to_wait_for_without_threads(no_threads: None) -> None:
    starter = Starter()
    with pytest.raises(OSError, match="can't start new thread") as raised:
        starter.start(lambda: None)
    assert raised.value.errno == errno.EAGAIN
    begun = time.monotonic()
    starter.wait_all_run()
    assert time.monotonic() - begun < 1


def test_a_call_waits_for_a_thread_if_there_are_no_more(
    no_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside, called = Aside(), threading.Event()
    aside.call(called.set)
    assert not called.is_set()
    monkeypatch.undo()
    aside.call(lambda: None)
    assert called.wait(20)

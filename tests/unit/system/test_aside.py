"""Threads beside the event loop, at the end of the process."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable

import pytest

from vconfs.system.aside import Aside


def test_the_process_ends_only_when_new_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for a call that blocks."""
    aside, start = Aside(), _thread.start_new_thread
    may_start, blocked, ran = threading.Event(), threading.Event(), threading.Event()

    def start_late(function: Callable[[], None], arguments: tuple[()]) -> int:
        def run() -> None:
            may_start.wait()
            ran.set()
            function()

        return start(run, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", start_late)
    aside.call(blocked.wait)
    late = threading.Timer(0.05, may_start.set)
    late.start()
    aside.wait_started()
    assert ran.is_set()
    assert not blocked.is_set()
    blocked.set()
    late.join()


def test_a_thread_that_never_runs_delays_the_end_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vconfs.system.aside._STARTING", 0.01)
    monkeypatch.setattr(_thread, "start_new_thread", lambda function, arguments: 0)
    aside = Aside()
    aside.call(lambda: None)
    begun = time.monotonic()
    aside.wait_started()
    assert 0.01 <= time.monotonic() - begun < 1


def test_there_is_nothing_to_wait_for_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: object, arguments: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", fail)
    monkeypatch.setattr("vconfs.system.aside._STARTING", 60.0)
    aside = Aside()
    aside.call(lambda: None)
    begun = time.monotonic()
    aside.wait_started()
    assert time.monotonic() - begun < 1

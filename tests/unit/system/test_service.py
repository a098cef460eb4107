"""Notifications to a service manager."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from vconfs.system.systemd import feed_watchdog, tell_ready


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
        end.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield end


def heard(manager: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(1000).decode().strip())
        except BlockingIOError:
            return messages


def test_the_manager_is_told_that_we_are_ready(manager: socket.socket) -> None:
    tell_ready("exec:true\nREADY=0 mounted")
    assert heard(manager) == [r"STATUS=exec:true\x0aREADY=0 mounted", "READY=1"]


async def test_the_manager_is_told_that_we_are_alive(
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with trio.move_on_after(45):
        await feed_watchdog()
    assert heard(manager) == ["WATCHDOG=1"] * 5


async def test_nothing_is_sent_without_a_manager(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    tell_ready("x")
    begun = trio.current_time()
    await feed_watchdog()
    assert trio.current_time() == begun


async def test_a_missing_manager_is_no_error(
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    manager.close()
    tell_ready("x")
    with trio.move_on_after(45) as scope:
        await feed_watchdog()
    assert scope.cancelled_caught, "it goes on, should the manager come back"

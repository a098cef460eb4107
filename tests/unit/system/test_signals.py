"""Answering signals: which files are opened anew, and what is said of the tasks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from vconfs.guest.devices import Embedded
from vconfs.guest.ports import PortManager
from vconfs.host.host import Host
from vconfs.system.log_once import LineLimit
from vconfs.system.signals import ENDING, answering_signals, log_tasks


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Put back what signals do, should a test have gone wrong."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)}
    yield
    for number, action in before.items():
        signal.signal(number, action)


async def test_each_hang_up_opens_files_anew() -> None:
    opened, more = 0, trio.lowlevel.ParkingLot()

    def reopen() -> None:
        nonlocal opened
        opened += 1
        more.unpark_all()

    async with answering_signals(reopen):
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGHUP)
            with trio.fail_after(5):
                while opened < count:
                    await more.park()
    assert opened == 2


async def test_the_files_of_an_embedded_host_end_are_its_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Host] = []
    monkeypatch.setattr(Host, "reopen_files", lambda host: asked.append(host))
    device = Embedded([])
    device.reopen_files()  # it is not open yet
    async with device.open(PortManager()):
        device.reopen_files()
    device.reopen_files()
    assert len(asked) == 1


async def test_tasks_are_logged_with_the_place_where_they_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with answering_signals(lambda: None):
        await trio.testing.wait_all_tasks_blocked()
        log_tasks()
    assert caplog.messages[0] == "SIGUSR1: the tasks are"
    (line,) = (line for line in caplog.messages if "_answer" in line)
    assert ". vconfs.system.signals._answer, in _answer at vconfs/system/signals.py:" in line


async def test_the_tasks_that_are_logged_have_a_limit_of_their_own(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(caplog.handler, "filters", [LineLimit()])
    async with trio.open_nursery() as nursery:
        for _ in range(1500):
            nursery.start_soon(trio.sleep_forever)
        log_tasks()
        nursery.cancel_scope.cancel()
    assert len(caplog.messages) == 1002
    assert caplog.messages[-1].endswith("tasks more")


def test_every_ending_signal_is_in_the_table() -> None:
    """What the kernel does by default is in signal(7): "Term" are these."""
    names = [
        "HUP",
        "INT",
        "KILL",
        "PIPE",
        "ALRM",
        "TERM",
        "USR1",
        "USR2",
        "PROF",
        "VTALRM",
        "STKFLT",
        "IO",
        "PWR",
        "QUIT",
        "XCPU",
        "XFSZ",
    ]
    would_end = {signal.Signals[f"SIG{name}"] for name in names} | {
        number for number in signal.valid_signals() if number >= signal.SIGRTMIN
    }
    otherwise = {signal.Signals[f"SIG{name}"] for name in ["HUP", "KILL", "PIPE", "USR1", "XFSZ"]}
    assert set(ENDING) == would_end - otherwise

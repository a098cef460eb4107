"""The signals that a daemon handles: most end it in order, and two do not end it.

    HUP           reopen the log and the files of the ports, as after a rotation
    USR1          write to the log what every task waits for
    PIPE XFSZ     ignored, as Python does: a write fails instead (EPIPE, EFBIG)
    others        end the daemon in order if their default action ends a program; signals of a
                  fault, like SEGV and ABRT, and KILL end it at once

Without our handler, a signal would leave a dead mount and sockets behind.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final

import trio

from vconfs.system._places import place_in
from vconfs.system.log_file import reopen_log_files
from vconfs.system.log_once import UNLIMITED
from vconfs.system.tasks import open_background

log: Final = logging.getLogger(__name__)

_ANSWERED: Final = (signal.SIGHUP, signal.SIGUSR1)
#: Signals that we do not handle: of a fault, or that do not end a program.
_LEFT_ALONE: Final = frozenset(
    {
        *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV),
        *(signal.SIGSYS, signal.SIGTRAP, signal.SIGKILL),
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN),
        *(signal.SIGTTOU, signal.SIGURG, signal.SIGWINCH, signal.SIGPIPE, signal.SIGXFSZ),
    }
)
#: Signals that end a daemon in order.
ENDING: Final = tuple(sorted(signal.valid_signals() - _LEFT_ALONE - {*_ANSWERED}))

#: The most lines about tasks that USR1 writes to the log.
_LINES_MAX: Final = 1000


def survive_hang_ups() -> None:
    """Ignore HUP and USR1, before and after the time that a task answers them."""
    for number in _ANSWERED:
        signal.signal(number, signal.SIG_IGN)


@asynccontextmanager
async def answering_signals(reopen_files: Callable[[], None]) -> AsyncIterator[None]:
    """Answer HUP and USR1 while the block runs."""
    with trio.open_signal_receiver(*_ANSWERED) as signals:
        async with open_background() as nursery:
            nursery.start_soon(_answer, signals, reopen_files)
            yield


async def _answer(signals: AsyncIterator[int], reopen_files: Callable[[], None]) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            reopen_log_files()
            try:
                reopen_files()
            except Exception as error:  # of any kind: chardevs may come from other packages
                log.warning("SIGHUP: a file could not be opened anew: %s", error)
            else:
                log.info("SIGHUP: the log and the files of ports are opened anew")
        else:
            log_tasks()


def log_tasks() -> None:
    """Write to the log all tasks, and where in our code each one waits."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    lines = _task_lines(root, 1)
    log.info("SIGUSR1: the tasks are")
    for line in islice(lines, _LINES_MAX):
        log.info("%s", line, extra=UNLIMITED)
    if more := sum(1 for _ in lines):
        log.info("and %d tasks more", more)


def _task_lines(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    place = place_in(task.iter_await_frames())
    yield f"{'. ' * depth}{task.name}{place and f', in {place}'}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _task_lines(child, depth + 1)

"""The signals that a daemon gets: most end it in order, and two do not end it.

    HUP           the log and the files of the ports are opened anew, as after a rotation
    USR1          what every task waits for is written to the log
    PIPE XFSZ     ignored, as Python has it: a write fails instead (EPIPE, EFBIG)
    others        end it in order, if they would end a program at all; those that tell of a fault,
                  like SEGV and ABRT, and KILL end it at once

Without a handler of ours a signal would leave a dead mount and sockets behind.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Final

import trio

import vconfs
from vconfs.system.log_file import reopen_log_files
from vconfs.system.tasks import open_background

log = logging.getLogger(__name__)

_ANSWERED: Final = (signal.SIGHUP, signal.SIGUSR1)
#: Not for us: a fault, a stop, or nothing that ends a program.
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

#: The most lines about tasks that a signal writes to the log.
_LINES_MAX: Final = 1000
_PACKAGE: Final = Path(vconfs.__file__).parent


def survive_hang_ups() -> None:
    """Ignore the signals that do not end a daemon, where nothing answers them yet, or any more."""
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
            except Exception as error:  # of whatever kind: other packages have chardevs, too
                log.warning("SIGHUP: a file could not be opened anew: %s", error)
            else:
                log.info("SIGHUP: the log and the files of ports are opened anew")
        else:
            log_tasks()


def log_tasks() -> None:
    """Write to the log which tasks there are, and where in our code each one waits."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    lines = _task_lines(root, 1)
    log.info("SIGUSR1: the tasks are")
    for line in islice(lines, _LINES_MAX):
        log.info("%s", line)
    if more := sum(1 for _ in lines):
        log.info("and %d tasks more", more)


def _task_lines(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    yield f"{'. ' * depth}{task.name}{_place(task)}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _task_lines(child, depth + 1)


def _place(task: trio.lowlevel.Task) -> str:
    """Return the innermost place in our code where a task is; "" if it is in none."""
    place = ""
    for frame, line in task.iter_await_frames():
        file = Path(frame.f_code.co_filename)
        if _PACKAGE in file.parents:
            place = f", in {frame.f_code.co_qualname} at {file.relative_to(_PACKAGE.parent)}:{line}"
    return place

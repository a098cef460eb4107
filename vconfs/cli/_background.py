"""Going to the background as mount helpers do: the caller continues when the mount is ready."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

from vconfs.cli._logs import log_in_background
from vconfs.errors import VconfsError

#: Signals that end both us, while we wait for the daemon to be ready, and the daemon.
_SHARED: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT)


def run_in_background(serve: Callable[[Callable[[], None]], None]) -> NoReturn:
    """Run `serve(ready)` in a child that outlives us, and exit 0 as soon as it calls `ready`.

    Before that, the child writes to our stderr; if it ends, we end with its exit code; and a
    signal that ends us ends the child, too. After that, it logs to the file of --log or to the
    system's log.
    """
    reader, writer = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SHARED)
    child = os.fork()
    if child:
        os.close(writer)
        _share_signals(child)
        try:
            ready = os.read(reader, 1)
        except KeyboardInterrupt:
            os.kill(child, signal.SIGINT)
            raise
        os._exit(0 if ready else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.close(reader)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SHARED)
    os.setsid()

    def detach() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        log_in_background()
        try:
            os.write(writer, b"+")
        except BrokenPipeError:
            raise VconfsError("the caller did not wait: the mount ends again") from None
        os.close(writer)

    serve(detach)
    sys.exit(0)


def _share_signals(child: int) -> None:
    """While we wait, let a signal that ends us end the child, too: it has its own session."""

    def end(number: int, frame: FrameType | None) -> None:
        os.kill(child, signal.SIGTERM)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    for number in _SHARED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SHARED)

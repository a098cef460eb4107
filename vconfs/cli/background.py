"""Going to the background the way mount helpers do: the caller goes on when the mount is there."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from vconfs.cli.logs import log_to_system


def run_in_background(serve: Callable[[Callable[[], None]], None]) -> NoReturn:
    """Run `serve(ready)` in a child that outlives us, and exit 0 as soon as it calls `ready`.

    What the child writes to stderr before that is seen, and if it ends before that, its exit
    code is ours. Ctrl-C before that is for both. What it logs later goes to the system's log.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        try:
            ready = os.read(reader, 1)
        except KeyboardInterrupt:
            os.kill(child, signal.SIGINT)
            raise
        os._exit(0 if ready else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.close(reader)
    os.setsid()

    def detach() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        log_to_system()
        os.write(writer, b"+")
        os.close(writer)

    serve(detach)
    sys.exit(0)

"""The log file of a daemon, which is reopened after a rotation, and never blocks the daemon."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Final

log: Final = logging.getLogger(__name__)

#: A fifo without a reader must not block us, and a terminal must not become our controlling one.
_HOW: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
#: Other users may not read what peers send.
_MODE: Final = 0o640
_STDERR: Final = 2


class LogFile(logging.Handler):
    """A handler that appends lines to a file, and counts those that cannot be written.

    Raise OSError if the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = os.path.abspath(path)
        self._descriptor = os.open(self._path, _HOW, _MODE)
        self._is_stderr = False
        self._lost = 0  # lines lost since the last one that was written
        self._torn = False  # True if the file ends with a part of a line

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line. If lines before it were lost, first write one that says how many."""
        if self._lost and self._write(self.format(_missing(self._lost))):
            self._lost = 0
        if self._lost or not self._write(self.format(record)):
            self._lost += 1

    def _write(self, line: str) -> bool:
        """Write a line. Return True if the file took all of it."""
        data = b"\n" * self._torn + line.encode(errors="backslashreplace") + b"\n"
        try:
            written = os.write(self._descriptor, data)
        except OSError:
            return False
        self._torn = written < len(data)
        return not self._torn

    def reopen(self) -> None:
        """Reopen the file by its path. If that fails, keep the open one."""
        try:
            new = os.open(self._path, _HOW, _MODE)
        except OSError as error:
            log.warning("the log %s cannot be opened anew: %s", self._path, error.strerror)
            return
        self._torn &= os.path.sameopenfile(new, self._descriptor)
        os.dup2(new, self._descriptor, inheritable=False)
        os.close(new)
        if self._is_stderr:
            os.dup2(self._descriptor, _STDERR)

    def take_stderr(self) -> None:
        """Redirect standard error to the file as well, for the programs that we start."""
        self._is_stderr = True
        os.dup2(self._descriptor, _STDERR)

    def close(self) -> None:
        """Close the file."""
        super().close()
        with suppress(OSError):
            os.close(self._descriptor)


def _missing(lines: int) -> logging.LogRecord:
    message, arguments = "%d lines are missing here: they could not be written", (lines,)
    return logging.LogRecord(__name__, logging.WARNING, "", 0, message, arguments, None)


def reopen_log_files() -> None:
    """Reopen every log file."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.reopen()

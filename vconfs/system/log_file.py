"""A file for the log of a daemon: opened anew when it is rotated, and never in the daemon's way."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Final

log = logging.getLogger(__name__)

#: A fifo that nobody reads, or a terminal, is no trap; others may not read what peers say.
_HOW: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MODE: Final = 0o640
_STDERR: Final = 2


class LogFile(logging.Handler):
    """Appends lines to a file. Those that it does not take, on a full disk, are counted.

    OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = os.path.abspath(path)
        self._descriptor = os.open(self._path, _HOW, _MODE)
        self._is_stderr = False
        self._lost = 0  # lines, since the last one that was written
        self._torn = False  # whether the last line was written in part

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, after one that says how many are missing before it."""
        if self._lost and self._write(self.format(_missing(self._lost))):
            self._lost = 0
        if self._lost or not self._write(self.format(record)):
            self._lost += 1

    def _write(self, line: str) -> bool:
        """Write a line, if the file takes all of it."""
        data = b"\n" * self._torn + line.encode(errors="backslashreplace") + b"\n"
        try:
            written = os.write(self._descriptor, data)
        except OSError:
            return False
        self._torn = written < len(data)
        return not self._torn

    def reopen(self) -> None:
        """Open the file at the path anew; the one that is open stays if that fails."""
        try:
            new = os.open(self._path, _HOW, _MODE)
        except OSError as error:
            log.warning("the log %s cannot be opened anew: %s", self._path, error.strerror)
            return
        os.dup2(new, self._descriptor, inheritable=False)
        os.close(new)
        self._torn = False
        if self._is_stderr:
            os.dup2(self._descriptor, _STDERR)

    def take_stderr(self) -> None:
        """Have standard error lead to the file as well, for the programs that we start."""
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
    """Open every file of the log anew."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.reopen()

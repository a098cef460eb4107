"""Messages on stderr: lines of text or, with --log-format json, of JSON.

A daemon writes the same messages to the file of --log. In the background, where there is no
stderr, a daemon without such a file writes them to the system's log.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import syslog
import traceback
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final

import click

from vconfs.cli._arguments import File
from vconfs.errors import VconfsError
from vconfs.syntax.printable import printable
from vconfs.system.log_file import LogFile
from vconfs.system.log_once import LineLimit

log: Final = logging.getLogger(__name__)


class _Lines(logging.Formatter):
    """Formats the message as one line."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(record.getMessage())


class _NamedLines(_Lines):
    """Formats lines as `vconfs: MESSAGE`."""

    def format(self, record: logging.LogRecord) -> str:
        return "vconfs: " + super().format(record)


class _StampedLines(_Lines):
    """Formats `TIME vconfs[PID]: LEVEL: MESSAGE`; TIME is like 2026-01-31T23:59:59.123+01:00."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone()
        head = f"{time.isoformat(timespec='milliseconds')} vconfs[{os.getpid()}]: "
        return f"{head}{record.levelname.lower()}: {super().format(record)}"


class _JsonLines(logging.Formatter):
    """Formats one object per line: {"time": 1760000000.5, "level": "warning", "message": "…"}.

    "time" is in seconds since 1970; "level" is info, warning or error.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        return json.dumps(fields)


_FORMATS: Final = {"text": _NamedLines, "json": _JsonLines}
_LINE_LIMIT: Final = LineLimit()
_PRIORITIES: Final = {
    logging.INFO: syslog.LOG_INFO,
    logging.WARNING: syslog.LOG_WARNING,
    logging.ERROR: syslog.LOG_ERR,
}
#: Where syslogd or the journal listens.
_SYSLOG: Final = "/dev/log"


def set_log_format(name: str = "text", *, limits_lines: bool = False) -> None:
    """Log to stderr from now on, in this format; limit alike lines if `limits_lines` is true."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATS[name]())
    if limits_lines:
        handler.addFilter(_LINE_LIMIT)
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("vconfs").setLevel(logging.INFO)


class _SystemLog(logging.Handler):
    """Writes to syslogd or the journal. A line that is not taken at once is lost."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        priority = syslog.LOG_DAEMON | _PRIORITIES.get(record.levelno, syslog.LOG_CRIT)
        head = f"<{priority}>vconfs[{os.getpid()}]: "
        line = (head + self.format(record)).encode(errors="backslashreplace")
        with suppress(OSError):
            self._socket.sendto(line, self._path)

    def close(self) -> None:
        self._socket.close()
        super().close()


def open_log(path: str | None, mountpoint: Path | None = None) -> None:
    """Log to the file of --log, too, from now on, if there is one.

    Raise VconfsError if it cannot be opened, or if it is below `mountpoint`: we would have to
    answer ourselves to reopen it.
    """
    if path is None:
        return
    if mountpoint is not None and _is_below(path, mountpoint):
        raise VconfsError(f"the log {path} is below {mountpoint}: choose another place")
    try:
        handler = LogFile(path)
    except OSError as error:
        raise VconfsError(f"cannot open the log {path}: {error.strerror}") from None
    handler.addFilter(_LINE_LIMIT)
    handler.setFormatter(_JsonLines() if _in_json() else _StampedLines())
    logging.getLogger().addHandler(handler)


def _is_below(path: str, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def log_in_background(path: str = _SYSLOG) -> None:
    """Log to the file of --log only or, without one, to the system's log, if there is one.

    An unexpected exception is logged, too, and the stderr of our programs goes to the file.
    """
    files = [it for it in logging.getLogger().handlers if isinstance(it, LogFile)]
    for file in files:
        file.take_stderr()
    if files:
        logging.getLogger().handlers[:] = files
    else:
        handler = _SystemLog(path)
        handler.addFilter(_LINE_LIMIT)
        handler.setFormatter(_JsonLines() if _in_json() else _Lines())
        logging.basicConfig(handlers=[handler], force=True)
    sys.excepthook = _log_failure


def _in_json() -> bool:
    return isinstance(logging.getLogger().handlers[0].formatter, _JsonLines)


def _log_failure(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Log an exception that ends the program, as sys.excepthook."""
    words = "".join(traceback.format_exception(kind, error, trace)).split()
    log.critical("ended by an internal error: %s", " ".join(words))


def _choose(ctx: click.Context, param: click.Parameter, name: str) -> None:
    set_log_format(name, limits_lines=True)


#: The option of every daemon.
log_option = click.option(
    "--log",
    "log_path",
    type=File(),
    metavar="FILE",
    help="File to append the log to; SIGHUP reopens it.",
)

#: An option of every daemon; eager, so that it applies to errors in other options.
log_format_option = click.option(
    "--log-format",
    type=click.Choice(list(_FORMATS)),
    default="text",
    show_default=True,
    callback=_choose,
    is_eager=True,
    expose_value=False,
    help="Format of the messages on stderr: lines of text, or JSON objects.",
)

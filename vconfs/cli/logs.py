"""What a command says on stderr: lines for people or, with --log-format json, for programs.

A command that goes to the background says it to the system's log from then on.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import syslog
from contextlib import suppress
from typing import Final

import click


class _Lines(logging.Formatter):
    """The message, always one line."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(record.getMessage().split())


class _NamedLines(_Lines):
    """`vconfs: MESSAGE`."""

    def format(self, record: logging.LogRecord) -> str:
        return "vconfs: " + super().format(record)


class _JsonLines(logging.Formatter):
    """One object per line: {"time": 1760000000.5, "level": "warning", "message": "…"}.

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
_PRIORITIES: Final = {
    logging.INFO: syslog.LOG_INFO,
    logging.WARNING: syslog.LOG_WARNING,
    logging.ERROR: syslog.LOG_ERR,
}
#: Where syslogd or the journal listens.
_SYSLOG: Final = "/dev/log"


def set_log_format(name: str = "text") -> None:
    """Send what is logged from now on to stderr, in this format."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATS[name]())
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("vconfs").setLevel(logging.INFO)


class _SystemLog(logging.Handler):
    """Writes to syslogd or the journal. A line that it does not take at once is lost."""

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


def log_to_system(path: str = _SYSLOG) -> None:
    """Send what is logged from now on to the system's log; nowhere, if there is none."""
    formatter = logging.getLogger().handlers[0].formatter
    handler = _SystemLog(path)
    handler.setFormatter(formatter if isinstance(formatter, _JsonLines) else _Lines())
    logging.basicConfig(handlers=[handler], force=True)


def _choose(ctx: click.Context, param: click.Parameter, name: str) -> None:
    set_log_format(name)


#: An option of every command that runs on; eager, so that it holds for the errors in the others.
log_format_option = click.option(
    "--log-format",
    type=click.Choice(list(_FORMATS)),
    default="text",
    show_default=True,
    callback=_choose,
    is_eager=True,
    expose_value=False,
    help="How to write what is told on stderr: lines for people, or JSON objects.",
)

"""What a command says on stderr: lines for people or, with --log-format json, for programs."""

from __future__ import annotations

import json
import logging
from typing import Final

import click


class _Lines(logging.Formatter):
    """`vconfs: MESSAGE`, always one line."""

    def format(self, record: logging.LogRecord) -> str:
        return "vconfs: " + " ".join(record.getMessage().split())


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


_FORMATS: Final = {"text": _Lines, "json": _JsonLines}


def set_log_format(name: str = "text") -> None:
    """Send what is logged from now on to stderr, in this format."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATS[name]())
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("vconfs").setLevel(logging.INFO)


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
    help="How to write what is told on stderr.",
)

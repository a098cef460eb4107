"""The commands: they parse arguments, connect the layers, and do nothing else."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Final, NoReturn

import click

from vconfs.cli._logs import set_log_format
from vconfs.cli._mount_helper import (
    helper_words,
    is_mount_helper,
    is_mount_helper_call,
    mount_words,
)
from vconfs.cli._streams import escape_what_cannot_be_shown, shows_colours
from vconfs.errors import VconfsError

log: Final = logging.getLogger(__name__)

#: Command → its module, which is imported only when the command is used.
_COMMANDS = {
    "mount": "vconfs.cli.mount",
    "host": "vconfs.cli.host",
    "ctl": "vconfs.cli.ctl",
    "umount": "vconfs.cli.umount",
    "ls": "vconfs.cli.ls",
    "watch": "vconfs.cli.watch",
    "tap": "vconfs.cli.tap",
    "top": "vconfs.cli.top",
    "cat": "vconfs.cli.cat",
    "connect": "vconfs.cli.connect",
    "bind": "vconfs.cli.bind",
    "unbind": "vconfs.cli.unbind",
    "doctor": "vconfs.cli.doctor",
    "demo": "vconfs.cli.demo",
    "manual": "vconfs.cli.manual",
}


#: The least and the most columns of a help text.
_HELP_MIN: Final = 30
_HELP_MAX: Final = 100


class _HelpFormatter(click.HelpFormatter):
    """Leaves room for the meanings of options on a narrow terminal."""

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Write options and their meanings in two columns."""
        super().write_dl(rows, min(col_max, self.width // 3), col_spacing)


click.Context.formatter_class = _HelpFormatter  # of all commands


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        try:
            command = importlib.import_module(_COMMANDS[cmd_name]).command
        except ImportError as error:
            if (error.name or "").startswith("vconfs"):
                raise
            raise VconfsError(f"{error}: `vconfs doctor` says how to get it") from None
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first word; if there is none, propose one that is like it."""
        word = args[0]
        if word not in _COMMANDS and not word.startswith("-"):
            close = get_close_matches(word, _COMMANDS, n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"there is no command {word!r}{hint}")
        return super().resolve_command(ctx, args)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="vconfs")
def vconfs() -> None:
    """Named ports between a virtual machine and its host, as files.

    \b
    Examples:
      vconfs demo                                         a short tour
      vconfs mount --port chat=unix:/tmp/chat.sock /mnt   one port, joined to a socket
      vconfs ls /mnt                                      what the ports are doing
      vconfs umount /mnt

    \b
    Completion, for bash, zsh or fish:
      eval "$(_VCONFS_COMPLETE=bash_source vconfs)"
    """


def _help_width() -> int:
    """Return the width of a help text for this terminal; click's own is never below 50."""
    return min(max(shutil.get_terminal_size().columns, _HELP_MIN), _HELP_MAX) - 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. `vconfs DEVICE DIR -o OPTIONS`, as mount(8) calls it, is `vconfs mount`."""
    if arguments is None and is_mount_helper(sys.argv[0]):
        words = _as_helper(sys.argv[1:])
    else:
        words = _as_click_has_them(list(sys.argv[1:] if arguments is None else arguments))
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # __main__ has set it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    escape_what_cannot_be_shown()
    set_log_format()
    if "_VCONFS_COMPLETE" in os.environ:
        importlib.import_module("vconfs.cli._completion")
    try:
        surroundings: dict[str, Any] = {"color": shows_colours(), "terminal_width": _help_width()}
        code = vconfs.main(words, prog_name="vconfs", standalone_mode=False, **surroundings)
        click.echo(nl=False)  # flushes the output, which may fail
        sys.exit(code or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        help_command = f"{error.ctx.command_path} --help" if error.ctx else "vconfs --help"
        message = " ".join(error.format_message().split())
        _fail(f"{message} (see {help_command})", error.exit_code)
    except VconfsError as error:
        _fail(str(error), 1)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except OSError as error:
        # At exit Python tries again to write its output, and prints an error if that fails.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _fail(_describe(error), 1)
    except (click.Abort, KeyboardInterrupt):
        # A shell ends its script, or its loop, only if the command was killed by the signal.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


def _as_helper(words: Sequence[str]) -> list[str]:
    """Return the command line of mount.fuse.vconfs as one of ours; end if nothing is to do."""
    ours = helper_words(words)
    if ours is None:
        sys.exit(0)
    return mount_words(ours) if len(ours) > 1 else ["mount", *ours]


def _as_click_has_them(words: list[str]) -> list[str]:
    """Return the command line, if it has one of the other forms that people and programs use."""
    first, *rest = words or [""]
    if first == "help":
        return [*rest[:1], "--help"]
    if first == "version":
        return ["--version", *rest]
    if first not in _COMMANDS and is_mount_helper_call(words):
        return mount_words(words)
    return words


def _describe(error: OSError) -> str:
    """Name what failed. An error without a file name is of our output, or of too many files."""
    if error.filename:
        return str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"no more files can be opened: {error.strerror} (see ulimit -n)"
    return f"standard output: {error.strerror}"


def _fail(message: str, code: int) -> NoReturn:
    log.error("%s", message)
    sys.exit(code)
